//! Bundles as they lie in a state folder, and what people make of them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use tempfile::TempDir;
use understudy_config::{Config, Local};
use understudy_replication::epoch::Epoch;
use understudy_replication::kv::entry::{After, Entry};
use understudy_replication::kv::operation::Operation;
use understudy_replication::kv::point::Point;
use understudy_replication::kv::salvage::{Acknowledged, Superseded, write};
use understudy_replication::position::Position;
use understudy_replication::wall_time::WallTime;

use super::bundle::Bundle;
use super::find::Trees;
use super::{export, find, show};

const MADE: WallTime = WallTime(1_700_000_000_123);

/// A node's state, with a bundle of each store.
struct Bench {
    folder: TempDir,
    local: Local,
    config: Config,
}

fn epoch(number: u64, node: &str) -> Epoch {
    Epoch {
        number,
        node: node.parse().unwrap(),
    }
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path).display().to_string();
        let cluster = "[cluster]\nname = \"x\"\n[[node]]\nname = \"a\"\naddress = \"10.0.0.1:7400\"\n\
            [[files]]\nname = \"docs\"\npath = \"/srv/docs\"\n";
        let node = format!(
            "name = \"a\"\nstate_dir = \"{}\"\nroot = \"{}\"\n",
            at("state"),
            at("root")
        );
        fs::write(at("understudy.toml"), cluster).unwrap();
        fs::write(at("node.toml"), node).unwrap();
        let loaded = understudy_config::load(
            Path::new(&at("understudy.toml")),
            Path::new(&at("node.toml")),
        )
        .unwrap();
        let bench = Self {
            folder,
            local: loaded.local,
            config: loaded.config,
        };
        bench.postgres();
        bench.files();
        bench.kv();
        bench.settings();
        bench
    }

    fn salvage(&self) -> std::path::PathBuf {
        self.local.state_dir.join("salvage")
    }

    fn postgres(&self) {
        let bundle = self.salvage().join("postgres-7-1.0-5-1.0-9");
        fs::create_dir_all(bundle.join("wal")).unwrap();
        fs::write(bundle.join("wal/000000010000000000000001"), [1; 4096]).unwrap();
        // As a version before this one wrote it.
        let summary = r#"{"version": 1, "made": 1700000000123, "system_identifier": 7, "data_dir": "/pg",
            "ranges": [{"timeline": 1, "from": 5, "to": 9}], "files": ["000000010000000000000001"],
            "is_complete": true, "not_understood": null, "records": 3, "committed": 1, "first_commit": "then",
            "last_commit": "then", "aborted": 0, "transactions": [{"xid": 9, "committed": "then",
            "inserted": {"1663/5/16384": 2}, "updated": {}, "deleted": {}}]}"#;
        fs::write(bundle.join("summary.json"), summary).unwrap();
    }

    fn files(&self) {
        let kept = self.local.resolve(Path::new("/srv/docs/.understudy/kept"));
        let tree = kept.join("1.a-77");
        fs::create_dir_all(tree.join("deep")).unwrap();
        fs::write(tree.join("deep/differs"), "old").unwrap();
        fs::set_permissions(tree.join("deep/differs"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("/nowhere/at/all", tree.join("link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            tree.join("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let bundle = self.salvage().join("files-docs-1.a-77");
        fs::create_dir_all(&bundle).unwrap();
        let manifest = serde_json::json!({
            "version": 1, "store": "docs", "made": MADE, "made_in": epoch(1, "a"), "position": 77,
            "superseded_by": epoch(2, "b"), "kept": tree, "bytes": 3, "differing": 1, "only_here": 1,
            "deleted_here": 1, "attributes": 0,
        });
        fs::write(bundle.join("manifest.json"), manifest.to_string()).unwrap();
        let paths = "{\"path\":\"deep/differs\",\"what\":\"differs\",\"bytes\":3}\n\
            {\"path\":\"link\",\"what\":\"only_here\",\"bytes\":0}\n\
            {\"path\":{\"base64\":\"/w==\"},\"what\":\"deleted_here\",\"bytes\":9}\n";
        fs::write(bundle.join("paths.jsonl"), paths).unwrap();
        // Of a version that wrote no list.
        fs::create_dir_all(kept.join("1.a-5")).unwrap();
        fs::write(kept.join("1.a-5/older"), "older").unwrap();
    }

    fn kv(&self) {
        let operations = [
            Operation::Set {
                key: "k\n".into(),
                value: vec![b'v'; 1000].into(),
                expires: None,
            },
            Operation::Delete { key: "gone".into() },
        ];
        let after = After {
            epoch: &epoch(1, "a"),
            opened: None,
            point: &Point::ORIGIN,
            bytes: 0,
            committed: Position(0),
        };
        let entry = Entry::make(&after, &operations).unwrap();
        let what = Superseded {
            store: "kv".parse().unwrap(),
            node: "a".parse().unwrap(),
            cut_to: Point::ORIGIN,
            end: entry.point(),
            acknowledged: Acknowledged::Unknown,
            superseded_by: Some(epoch(2, "b")),
        };
        let entries = [Ok::<_, std::io::Error>(entry.payload().clone())];
        write(&self.salvage(), &what, MADE, entries).unwrap();
    }

    fn settings(&self) {
        let replaced = self.local.state_dir.join("settings/replaced/4/etc/app");
        fs::create_dir_all(&replaced).unwrap();
        fs::write(replaced.join("app.conf"), "mine\n").unwrap();
    }

    fn list(&self) -> Vec<Bundle> {
        find::list(&self.local, &Trees::of(&self.config)).unwrap()
    }

    fn find(&self, prefix: &str) -> Bundle {
        let mut found = self.list();
        found.retain(|bundle| bundle.name.starts_with(prefix));
        found.pop().unwrap()
    }

    fn show(&self, prefix: &str) -> String {
        let bundle = self.find(prefix);
        let shown = show::Shown::of(&bundle, &self.local, 0, 100).unwrap();
        shown.text()
    }

    fn export(&self, prefix: &str) -> std::path::PathBuf {
        let to = self.folder.path().join("out");
        export::export(&self.find(prefix), &self.local, &to)
            .unwrap()
            .0
    }
}

#[test]
fn every_store_s_bundles_are_listed_and_what_is_unknown_is_said() {
    let bench = Bench::new();
    fs::create_dir(bench.salvage().join("strange")).unwrap();
    fs::create_dir(bench.salvage().join(".files-docs-9.a-9.partial")).unwrap();
    fs::create_dir(bench.salvage().join("kv-half")).unwrap();
    let mut told: Vec<String> = bench
        .list()
        .iter()
        .map(|bundle| {
            let name = if bundle.name.starts_with("kv-2") {
                "kv-TIME-1.a"
            } else {
                &bundle.name
            };
            format!(
                "{name} {} {}{}",
                bundle.store,
                bundle.is_complete,
                bundle.why()
            )
        })
        .collect();
    told.sort();
    assert_eq!(
        told,
        [
            "files-docs-1.a-5 docs true; of epoch 1.a",
            "files-docs-1.a-77 docs true; epoch 1.a was superseded by 2.b",
            "kv-TIME-1.a kv true; epoch 1.a was superseded by 2.b",
            "kv-half kv false",
            "postgres-7-1.0-5-1.0-9 postgres true",
            "settings-replaced-4 settings true",
            "strange files false",
        ]
    );
    assert!(find::find(&bench.local, &Trees::default(), "../../etc").is_err());
}

#[test]
fn what_is_in_a_bundle_is_shown_a_page_at_a_time() {
    let bench = Bench::new();
    let postgres = bench.show("postgres");
    assert!(
        postgres.contains("timeline 1: from 0/5 to 0/9"),
        "{postgres}"
    );
    assert!(
        postgres.contains("transaction 9 at then: 2 rows inserted, 0 updated, 0 deleted"),
        "{postgres}"
    );
    let files = bench.show("files-docs-1.a-77");
    for part in ["differed", "deep/differs", "deleted here", "\\xff"] {
        assert!(files.contains(part), "{part}: {files}");
    }
    let kv = bench.show("kv");
    assert!(
        kv.contains("set k\\n = vvv") && kv.contains("… (1000 bytes)"),
        "{kv}"
    );
    assert!(kv.contains("delete gone"), "{kv}");
    let bundle = bench.find("kv");
    let page = show::Shown::of(&bundle, &bench.local, 1, 1).unwrap().text();
    assert!(
        page.contains("delete gone") && !page.contains("set k"),
        "{page}"
    );
    assert!(page.contains("1 of 2 are shown, after 1"), "{page}");
    assert!(bench.show("settings").contains("etc/app/app.conf"));
}

#[test]
fn an_export_is_whole_says_what_it_is_and_overwrites_nothing() {
    let bench = Bench::new();
    let files = bench.export("files-docs-1.a-77");
    assert_eq!(
        fs::read_to_string(files.join("files/deep/differs")).unwrap(),
        "old"
    );
    let mode = fs::metadata(files.join("files/deep/differs")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o640);
    // A link is copied as a link: it leads elsewhere, or nowhere.
    let link = fs::read_link(files.join("files/link")).unwrap();
    assert_eq!(link, Path::new("/nowhere/at/all"));
    let readme = fs::read_to_string(files.join("README.txt")).unwrap();
    assert!(readme.contains("kept/1.a-77/pipe") && !files.join("files/pipe").exists());
    assert!(files.join("paths.jsonl").exists());

    let postgres = bench.export("postgres");
    assert_eq!(
        fs::read(postgres.join("wal/000000010000000000000001")).unwrap(),
        [1; 4096]
    );
    let readme = fs::read_to_string(postgres.join("README.txt")).unwrap();
    assert!(
        readme.contains("pg_waldump --path=wal --timeline=1 --start=0/5 --end=0/9"),
        "{readme}"
    );

    let kv = bench.export("kv");
    let operations = fs::read_to_string(kv.join("operations.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = operations
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["key"], "k\n");
    assert_eq!(lines[0]["value"].as_str().unwrap().len(), 1000);
    assert_eq!(
        lines[1],
        serde_json::json!({"operation": "delete", "key": "gone"})
    );

    let out = bench.folder.path().join("out");
    fs::write(postgres.join("mine"), "mine").unwrap();
    let again = export::export(&bench.find("postgres"), &bench.local, &out).unwrap_err();
    assert_eq!(again.kind.exit_status(), 3, "{again}");
    assert_eq!(fs::read_to_string(postgres.join("mine")).unwrap(), "mine");
    let inside = bench.local.state_dir.join("salvage");
    let inside = export::export(&bench.find("kv"), &bench.local, &inside).unwrap_err();
    assert_eq!(inside.kind.exit_status(), 2, "{inside}");
    // Nothing is left of what did not end.
    assert_eq!(fs::read_dir(out).unwrap().count(), 3);
}

#[test]
fn a_bundle_is_removed_with_its_files_only_when_that_is_said() {
    let bench = Bench::new();
    let refused = super::remove(bench.find("files-docs-1.a-77"), false, false).unwrap_err();
    assert_eq!(refused.kind.exit_status(), 3);
    assert!(refused.to_string().contains("--yes"), "{refused}");
    let bundle = bench.find("files-docs-1.a-77");
    let tree = bundle.tree().unwrap().to_owned();
    bundle.remove().unwrap();
    assert!(!tree.exists() && !bundle.path.exists());
    assert!(tree.parent().unwrap().join("1.a-5").exists());
    // A manifest that names another place takes nothing with it.
    let bench = Bench::new();
    let path = bench.salvage().join("files-docs-1.a-77/manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(".understudy/kept/1.a-77", "")).unwrap();
    let name = "files-docs-1.a-77";
    let bundle = find::find(&bench.local, &Trees::of(&bench.config), name).unwrap();
    assert!(bundle.remove().is_err());
    assert!(bundle.path.exists() && bench.local.resolve(Path::new("/srv/docs")).exists());
}

#[test]
fn what_was_kept_aside_is_listed_and_exported_on_a_node_whose_configuration_is_broken() {
    let bench = Bench::new();
    let names = |trees: &Trees| -> Vec<String> {
        let bundles = find::list(&bench.local, trees).unwrap();
        bundles.into_iter().map(|bundle| bundle.name).collect()
    };
    let whole = names(&Trees::of(&bench.config));
    let place = crate::Place {
        folder: bench.folder.path().to_owned(),
    };
    let file = bench.folder.path().join("understudy.toml");
    let text = fs::read_to_string(&file).unwrap();
    // A key that nobody knows; one line that is no TOML; nothing at all.
    let broken = [
        text.replace("[cluster]", "[cluster]\nnonsense = 1"),
        text.replace("name = \"x\"", "name = \"x"),
        String::new(),
    ];
    for text in broken {
        fs::write(&file, &text).unwrap();
        let trees = Trees::read(&place);
        assert!(trees.doubt.is_some(), "{text}");
        assert_eq!(names(&trees), whole, "{text}");
        let listed = super::Salvage {
            verb: super::Verb::List { json: true },
        };
        listed.run(&place).unwrap();
    }
    let export = super::Salvage {
        verb: super::Verb::Export {
            bundle: "files-docs-1.a-5".to_owned(),
            to: bench.folder.path().join("out"),
            json: true,
        },
    };
    export.run(&place).unwrap();
    let exported = bench.folder.path().join("out/files-docs-1.a-5/files/older");
    assert_eq!(fs::read_to_string(exported).unwrap(), "older");
    // Without a bundle that names the tree, the configuration has to.
    fs::remove_dir_all(bench.salvage().join("files-docs-1.a-77")).unwrap();
    assert!(!names(&Trees::read(&place)).contains(&"files-docs-1.a-5".to_owned()));
    let half = text.replace("[cluster]", "[cluster]\nnonsense = 1");
    fs::write(&file, half).unwrap();
    assert!(names(&Trees::read(&place)).contains(&"files-docs-1.a-5".to_owned()));
}
