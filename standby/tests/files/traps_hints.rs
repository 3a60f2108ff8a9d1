//! Short hashes that say where to look, and lie. Each test begins with the trap's number.

use std::fs;
use std::os::unix::fs::FileExt;

use understudy_replication::files::{Blocks, Digest, Outboard, Piece};
use understudy_replication::store::{Receiver, Shipper};

use super::pair::Followed;

/// How a group is kept: its chaining value, and the short hash of each of its pages.
const GROUP_ENCODED_BYTES: usize = 64;
const PAGES_FROM: usize = 32;

const PAGE_BYTES: usize = 4096;

/// Lets the second page of a file's first group have the short hash that it has in another file.
fn collide(old: &Outboard, new: &Outboard) -> Vec<Vec<u8>> {
    let (mut lying, honest): (Vec<_>, Vec<_>) = (old.encode().collect(), new.encode().collect());
    let second = PAGES_FROM + 8..PAGES_FROM + 16;
    assert!(lying[0].len() >= GROUP_ENCODED_BYTES);
    assert_ne!(lying[0][second.clone()], honest[0][second.clone()]);
    lying[0][second.clone()].copy_from_slice(&honest[0][second]);
    lying
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_27_short_hashes_that_collide_are_found_out_and_all_is_sent() {
    // One that is built beside the old, and one that is changed in place.
    let files = [("beside", 1_usize << 20), ("in place", 17 << 20)];
    let mut followed = Followed::of(|root| {
        for (name, bytes) in files {
            fs::write(root.join(name), vec![b'0'; bytes]).unwrap();
        }
    })
    .await;
    let (source, state) = (followed.source(), followed.pair.state("a"));
    followed.primary.stop().await;

    let blocks = Blocks::open(&state);
    for (name, bytes) in files {
        let size = bytes as u64;
        let path = source.join(name);
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let root = Digest::of_reader(&file).unwrap().0;
        let (old, _) = Outboard::read(&file, size).unwrap();
        file.write_all_at(b"in the first page", 10).unwrap();
        file.write_all_at(b"in the second", PAGE_BYTES as u64 + 10)
            .unwrap();
        let (new, _) = Outboard::read(&file, size).unwrap();
        let lying = Outboard::decode(size, root, &collide(&old, &new)).unwrap();
        // What is shipped will leave the second page as it was.
        let pieces = new.pieces_from(&lying, &file).unwrap().unwrap();
        let first = Piece::Literal(PAGE_BYTES as u64);
        assert_eq!(pieces[0], first);
        assert!(matches!(pieces[1], Piece::Keep { offset: 4096, .. }));
        blocks.put(root, &lying);
    }
    drop(blocks);
    followed.primary = followed.pair.primary();
    followed.agree().await;
    assert_eq!(followed.receiver.troubles(), []);
    let problems = followed.primary.shipper.report().problems;
    assert_eq!(problems, Vec::<String>::new());
    followed.end().await;
}
