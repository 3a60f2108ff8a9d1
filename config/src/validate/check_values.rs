//! What the keys of `[[check]]` hold.

use std::net::IpAddr;
use std::time::Duration;

use crate::problem::Mistake;
use crate::{Amount, Share, duration, size};

/// Shorter, and the looking is a load of its own.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
const URL: &str = "a URL such as \"http://127.0.0.1:8080/health\"";

pub(super) fn interval(text: &str) -> Result<Duration, Mistake> {
    let interval = duration::parse(text)?;
    if interval < INTERVAL_MIN {
        let what = format!("`{text}` is too short between two looks");
        return Err(Mistake::new(what, "at least \"1s\""));
    }
    Ok(interval)
}

pub(super) fn amount(text: &str) -> Result<Amount, Mistake> {
    if let Ok(share) = text.parse::<Share>() {
        return Ok(Amount::Share(share));
    }
    size::parse(text).map(Amount::Bytes).map_err(|_| {
        let what = format!("`{text}` is neither a share nor a size");
        Mistake::new(what, "a share such as \"5%\", or a size such as \"10GB\"")
    })
}

pub(super) fn number(text: &str) -> Result<f64, Mistake> {
    let is_number = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number = text.parse::<f64>().ok().filter(|_| is_number);
    number
        .filter(|it| *it > 0.0 && *it <= 1000.0)
        .ok_or_else(|| {
            let what = format!("`{text}` is not a number above 0");
            Mistake::new(what, "how many threads for each processor, such as \"2.5\"")
        })
}

pub(super) fn ip(text: &str) -> Result<IpAddr, Mistake> {
    let ip: Option<IpAddr> = text.parse().ok();
    ip.filter(|ip| !ip.is_unspecified()).ok_or_else(|| {
        let what = format!("`{text}` is not the IP address of a machine");
        Mistake::new(what, "an IP address such as \"10.0.0.254\"")
    })
}

pub(super) fn host_and_port(text: &str) -> Result<(String, u16), Mistake> {
    let mistake = || {
        let what = format!("`{text}` is not a host and a port");
        Mistake::new(
            what,
            "a host and a port, such as \"127.0.0.1:8080\" or \"[fd00::1]:8080\"",
        )
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(mistake)?;
    let port = port
        .parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(mistake)?;
    let bare = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let is_odd = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '/' | '[' | ']');
    let host = bare.unwrap_or(host);
    if host.is_empty() || host.contains(is_odd) || bare.is_none() && host.contains(':') {
        return Err(mistake());
    }
    Ok((host.to_owned(), port))
}

pub(super) fn url(text: &str) -> Result<String, Mistake> {
    let wrong = |what: &str| Err(Mistake::new(format!("`{text}` {what}"), URL));
    if text.starts_with("https://") {
        let what = format!("`{text}` is encrypted, which a check of kind `http` does not do");
        let expected = "an `http` URL, or kind \"command\" with `curl`";
        return Err(Mistake::new(what, expected));
    }
    let Some(rest) = text.strip_prefix("http://") else {
        return wrong("is not a URL of `http`");
    };
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return wrong("holds a blank, or a character that a URL writes as `%`");
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let with_port = match authority.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => authority.to_owned(),
        _ => format!("{authority}:80"),
    };
    if host_and_port(&with_port).is_err() || authority.contains('@') {
        return wrong("has no host, or no port that is one");
    }
    Ok(text.to_owned())
}

pub(super) fn query(text: &str) -> Result<String, Mistake> {
    if text.trim().is_empty() || text.contains('\0') {
        return Err(Mistake::new(
            "the query is empty",
            "a query, such as \"SELECT 1\"",
        ));
    }
    Ok(text.to_owned())
}
