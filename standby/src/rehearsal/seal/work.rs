//! Runs what the daemon orders, one after the other.

use std::io::{self, BufRead, Write};

use understudy_replication::command::{Command, CommandError};
use understudy_replication::error_chain;

use super::{Answer, Order};

/// An order has at most this length.
const ORDER_BYTES_MAX: usize = 1 << 20;

/// Runs orders until the input ends, and then ends this process at once: with it the room goes, and whatever
/// an order has under way.
pub(super) fn work() -> io::Result<()> {
    let (sender, mut orders) = tokio::sync::mpsc::channel::<String>(1);
    std::thread::Builder::new()
        .name("orders".to_owned())
        .spawn(move || {
            for line in io::stdin().lock().lines() {
                let Ok(line) = line.map(|line| line.chars().take(ORDER_BYTES_MAX).collect()) else {
                    break;
                };
                if sender.blocking_send(line).is_err() {
                    break;
                }
            }
            std::process::exit(0);
        })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        tell(&Answer::Ready)?;
        while let Some(line) = orders.recv().await {
            let answer = match serde_json::from_str::<Order>(&line) {
                Ok(order) => run(order).await,
                Err(error) => Answer::Failed {
                    status: None,
                    message: format!("this is no order: {error}"),
                    output: String::new(),
                },
            };
            tell(&answer)?;
        }
        Ok(())
    })
}

fn tell(answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

async fn run(order: Order) -> Answer {
    let limit = order.limit();
    let mut command = Command::new(order.argv).limit(limit);
    if let Some(user) = order.user {
        command = command.user(&user.into());
    }
    for (name, value) in order.environment {
        command = command.env(&name, value);
    }
    match command.run().await {
        Ok(output) => Answer::Done(output),
        Err(error) => {
            let (status, output) = match &error {
                CommandError::Failed { status, output, .. } => (status.code(), output.clone()),
                CommandError::TimedOut { output, .. } => (None, output.clone()),
                CommandError::NoUser { .. }
                | CommandError::NotRoot { .. }
                | CommandError::Start { .. } => (None, String::new()),
            };
            Answer::Failed {
                status,
                message: error_chain(&error),
                output,
            }
        }
    }
}
