//! Brings up the loopback interface of a network namespace, which begins with it down.

use std::io;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

/// The interface of this number is the loopback, in every network namespace.
const LOOPBACK: i32 = 1;

/// `RTM_NEWLINK` of `linux/rtnetlink.h`.
const CHANGE_LINK: u16 = 16;

/// `NLM_F_REQUEST | NLM_F_ACK` of `linux/netlink.h`.
const WITH_ANSWER: u16 = 1 | 4;

/// `NLMSG_ERROR`, which says by 0 that there was none.
const ANSWER: u16 = 2;

/// `IFF_UP` of `linux/if.h`.
const UP: u32 = 1;

/// Brings it up.
pub(super) fn up() -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // `NETLINK_ROUTE` is 0, which is what no protocol stands for.
        None,
    )?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, &request(), SendFlags::empty(), &kernel)?;
    let mut answer = [0; 256];
    let (bytes, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    result(answer.get(..bytes).unwrap_or_default())
}

/// A `nlmsghdr` and an `ifinfomsg`, of 16 bytes each.
fn request() -> Vec<u8> {
    let mut message = Vec::with_capacity(32);
    message.extend_from_slice(&32_u32.to_ne_bytes());
    message.extend_from_slice(&CHANGE_LINK.to_ne_bytes());
    message.extend_from_slice(&WITH_ANSWER.to_ne_bytes());
    // Sequence and port.
    message.extend_from_slice(&1_u32.to_ne_bytes());
    message.extend_from_slice(&0_u32.to_ne_bytes());
    // Family, padding, type.
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&LOOPBACK.to_ne_bytes());
    // The flags, and which of them are to change.
    message.extend_from_slice(&UP.to_ne_bytes());
    message.extend_from_slice(&UP.to_ne_bytes());
    message
}

fn result(answer: &[u8]) -> io::Result<()> {
    let short = || io::Error::other("the kernel's answer is too short");
    let kind: [u8; 2] = answer
        .get(4..6)
        .and_then(|it| it.try_into().ok())
        .ok_or_else(short)?;
    let error: [u8; 4] = answer
        .get(16..20)
        .and_then(|it| it.try_into().ok())
        .ok_or_else(short)?;
    if u16::from_ne_bytes(kind) != ANSWER {
        return Err(io::Error::other("the kernel's answer is none"));
    }
    match i32::from_ne_bytes(error) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_understood() {
        let answer = |kind: u16, error: i32| {
            let mut answer = vec![0; 36];
            answer[4..6].copy_from_slice(&kind.to_ne_bytes());
            answer[16..20].copy_from_slice(&error.to_ne_bytes());
            result(&answer).map_err(|error| error.raw_os_error())
        };
        assert_eq!(answer(ANSWER, 0), Ok(()));
        assert_eq!(answer(ANSWER, -1), Err(Some(1)));
        assert_eq!(answer(CHANGE_LINK, 0), Err(None));
        assert!(result(&[0; 10]).is_err());
        assert_eq!(request().len(), 32);
    }
}
