use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

type Command = Vec<Vec<u8>>;

/// Decodes what comes in pieces that end at `cuts`.
fn decode(bytes: &[u8], cuts: &[usize]) -> (Vec<Command>, Option<ProtocolError>) {
    let mut decoder = Decoder::default();
    let (mut buffer, mut commands) = (Vec::new(), Vec::new());
    let mut ends: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut start = 0;
    for end in ends {
        buffer.extend_from_slice(&bytes[start..end]);
        start = end;
        loop {
            match decoder.decode(&mut buffer, true) {
                Ok(None) => break,
                Ok(Some(len)) => {
                    let args = Args::new(&buffer, decoder.spans());
                    if !args.is_empty() {
                        commands.push(args.from(0).map(<[u8]>::to_vec).collect());
                    }
                    buffer.drain(..len);
                }
                Err(error) => return (commands, Some(error)),
            }
        }
    }
    (commands, None)
}

fn encode(command: &Command) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for arg in command {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

fn words(words: &[&str]) -> Command {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

fn error_of(bytes: &[u8], is_authenticated: bool) -> String {
    let mut decoder = Decoder::default();
    let error = decoder.decode(&mut bytes.to_vec(), is_authenticated);
    error.expect_err("it is refused").to_string()
}

#[test]
fn what_is_no_resp_is_refused_in_the_words_of_redis() {
    for (bytes, text) in [
        (&b"*x\r\n"[..], "invalid multibulk length"),
        (b"*\r\n", "invalid multibulk length"),
        (b"*99999999999\r\n", "invalid multibulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$\r\n", "invalid bulk length"),
        (b"*1\r\n$999999999\r\n", "invalid bulk length"),
        (b"*1\r\n+PING\r\n", "expected '$', got '+'"),
        (b"*1\r\n\r\n", "expected '$', got ' '"),
        (b"get \"a\r\n", "unbalanced quotes in request"),
        (b"get 'a'b\r\n", "unbalanced quotes in request"),
        (&[b'a'; 70_000], "too big inline request"),
        (&[b'*'; 70_000], "too big mbulk count string"),
        (
            &[&b"*1\r\n"[..], &[b'$'; 70_000]].concat(),
            "too big bulk count string",
        ),
    ] {
        assert_eq!(error_of(bytes, true), format!("ERR Protocol error: {text}"));
    }
}

#[test]
fn who_has_not_told_the_password_may_send_little() {
    assert_eq!(
        error_of(b"*11\r\n", false),
        "ERR Protocol error: unauthenticated multibulk length"
    );
    assert_eq!(
        error_of(b"*1\r\n$16385\r\n", false),
        "ERR Protocol error: unauthenticated bulk length"
    );
    assert_eq!(
        Decoder::default().decode(&mut b"*1\r\n$16384\r\n".to_vec(), false),
        Ok(None)
    );
}

#[test]
fn arguments_that_are_too_large_together_are_refused() {
    let mut bytes = b"*3\r\n".to_vec();
    for _ in 0..2 {
        bytes.extend_from_slice(b"$2097152\r\n");
        bytes.resize(bytes.len() + 2_097_152 + 2, b'a');
    }
    assert_eq!(
        error_of(&bytes, true),
        "ERR Protocol error: invalid bulk length"
    );
}

#[test]
fn a_line_is_a_command_as_well() {
    let (commands, error) = decode(
        b"PING\r\n\r\n  set 'a b' \"\\x41\\n\\\"\" c'\\''d\n*0\r\n*-1\r\nget \"\"\r\n",
        &[],
    );
    assert_eq!(error, Some(ProtocolError::UnbalancedQuotes));
    assert_eq!(commands, [words(&["PING"])]);
    let (commands, error) = decode(
        b"PING\r\n\r\n  set 'a b' \"\\x41\\n\\\"\" c'\\''\n*0\r\n*-1\r\nget \"\"\r\n",
        &[],
    );
    assert_eq!(error, None);
    assert_eq!(
        commands,
        [
            words(&["PING"]),
            words(&["set", "a b", "A\n\"", "c'"]),
            words(&["get", ""])
        ]
    );
}

proptest! {
    #[test]
    fn commands_are_found_however_they_are_cut(
        commands in vec(vec(vec(any::<u8>(), 0..20), 1..5), 0..8),
        cuts in vec(any::<usize>(), 0..12),
    ) {
        let bytes: Vec<u8> = commands.iter().flat_map(encode).collect();
        prop_assert_eq!(decode(&bytes, &cuts), (commands, None));
    }

    #[test]
    fn anything_else_is_understood_in_the_same_way_however_it_is_cut(
        bytes in prop_oneof![
            vec(prop::sample::select(&b"*$0123-\r\n'\"\\xab \0"[..]), 0..60),
            vec(prop::sample::select(vec![&b"*1\r\n"[..], b"*2\r\n", b"$1\r\n", b"$3\r\n", b"a\r\n", b"abc\r\n", b"'", b"\""]), 0..20)
                .prop_map(|parts| parts.concat()),
        ],
        cuts in vec(any::<usize>(), 0..12),
    ) {
        prop_assert_eq!(decode(&bytes, &cuts), decode(&bytes, &[]));
    }
}
