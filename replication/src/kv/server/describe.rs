//! `COMMAND` and `CONFIG`: what clients ask about the server itself.

use crate::kv::command::error::{CommandError, excerpt};
use crate::kv::command::{COMMANDS, Command, Outcome, Run};
use crate::kv::resp::{Args, Reply};

/// What `CONFIG GET` knows: what tools ask for that would show how safe data is.
const PARAMETERS: [(&str, &str); 4] = [
    ("appendfsync", "always"),
    ("appendonly", "yes"),
    ("databases", "1"),
    ("save", ""),
];

pub(super) fn command(args: Args<'_>, reply: &mut Reply) -> Outcome {
    let Some(subcommand) = args.get(1) else {
        reply.array(COMMANDS.len());
        COMMANDS.iter().for_each(|command| describe(command, reply));
        return Ok(());
    };
    match &subcommand.to_ascii_uppercase()[..] {
        b"COUNT" if args.len() == 2 => reply.count(COMMANDS.len()),
        b"COUNT" => return Err(CommandError::Arity("command|count")),
        b"LIST" if args.len() == 2 => {
            reply.set(COMMANDS.len());
            COMMANDS
                .iter()
                .for_each(|command| reply.bulk(command.name.as_bytes()));
        }
        b"INFO" if args.len() == 2 => {
            reply.array(COMMANDS.len());
            COMMANDS.iter().for_each(|command| describe(command, reply));
        }
        b"INFO" => {
            let names = args.from(2);
            reply.array(names.len());
            for name in names {
                match Command::named(name) {
                    Some(command) => describe(command, reply),
                    None => reply.null_array(),
                }
            }
        }
        b"DOCS" => {
            let wanted: Vec<_> = match args.len() {
                2 => COMMANDS.iter().collect(),
                _ => args.from(2).filter_map(Command::named).collect(),
            };
            reply.map(wanted.len());
            for command in wanted {
                reply.bulk(command.name.as_bytes());
                reply.map(1);
                reply.bulk(b"summary");
                reply.text(&format!(
                    "as in Redis: https://redis.io/commands/{}",
                    command.name
                ));
            }
        }
        b"GETKEYS" if args.len() >= 4 => {
            let inner = args.skip(2);
            let command = Command::named(inner.at(0))
                .ok_or(CommandError::Other("Invalid command specified"))?;
            if !command.takes(inner.len()) {
                return Err(CommandError::Other(
                    "Invalid number of arguments specified for command",
                ));
            }
            let keys = command.keys(inner);
            let count = keys.clone().count();
            if count == 0 {
                return Err(CommandError::Other("The command has no key arguments"));
            }
            reply.array(count);
            keys.for_each(|key| reply.bulk(key));
        }
        b"GETKEYS" => return Err(CommandError::Arity("command|getkeys")),
        _ => {
            return Err(CommandError::UnknownSubcommand {
                command: "COMMAND",
                subcommand: excerpt(subcommand),
            });
        }
    }
    Ok(())
}

fn describe(command: &Command, reply: &mut Reply) {
    let (flag, category) = match command.run {
        Run::Read(_) => ("readonly", "@read"),
        Run::Write(_) => ("write", "@write"),
        Run::Session(_) => ("noscript", "@connection"),
    };
    reply.array(10);
    reply.bulk(command.name.as_bytes());
    reply.integer(command.arity.into());
    reply.set(1);
    reply.simple(flag);
    reply.integer(command.keys.first.into());
    reply.integer(command.keys.last.into());
    reply.integer(command.keys.step.into());
    reply.set(1);
    reply.simple(category);
    reply.array(0);
    reply.array(0);
    reply.array(0);
}

pub(super) fn config(args: Args<'_>, reply: &mut Reply) -> Outcome {
    match &args.at(1).to_ascii_uppercase()[..] {
        b"GET" if args.len() >= 3 => {
            let is_wanted = |name: &str| {
                args.from(2).any(|pattern| {
                    crate::kv::command::is_match(&pattern.to_ascii_lowercase(), name.as_bytes())
                })
            };
            let found: Vec<_> = PARAMETERS
                .iter()
                .filter(|(name, _)| is_wanted(name))
                .collect();
            reply.map(found.len());
            for (name, value) in found {
                reply.bulk(name.as_bytes());
                reply.bulk(value.as_bytes());
            }
            Ok(())
        }
        b"GET" => Err(CommandError::Arity("config|get")),
        _ => Err(CommandError::UnknownSubcommand {
            command: "CONFIG",
            subcommand: excerpt(args.at(1)),
        }),
    }
}
