//! Whatever the order in which services wait for each other.

use proptest::prelude::*;

use super::*;

/// A configuration of services `s0`, `s1`, … of which each waits for some others.
fn config(afters: &[Vec<usize>], folder: &Path) -> String {
    let mut text =
        "[cluster]\nname = \"c\"\n[[node]]\nname = \"a\"\naddress = \"10.0.0.1:1\"\n".to_owned();
    for (number, after) in afters.iter().enumerate() {
        let after: Vec<String> = after.iter().map(|at| format!("\"s{at}\"")).collect();
        let folder = folder.display();
        text += &format!(
            "[[service]]\nname = \"s{number}\"\nafter = [{}]\n\
             start = [\"sh\", \"-c\", \"echo s{number} >>{folder}/started; touch {folder}/s{number}\"]\n\
             stop = [\"sh\", \"-c\", \"echo s{number} >>{folder}/stopped; rm {folder}/s{number}\"]\n\
             status = [\"test\", \"-e\", \"{folder}/s{number}\"]\n",
            after.join(", ")
        );
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn m01_each_starts_after_those_it_waits_for_and_the_stop_is_the_exact_reverse(
        ranks in Just((0..6_usize).collect::<Vec<_>>()).prop_shuffle(),
        edges in prop::collection::btree_set((0..6_usize, 0..6_usize), 0..10),
    ) {
        let mut afters = vec![Vec::new(); 6];
        for (left, right) in edges {
            if ranks[left] < ranks[right] {
                afters[right].push(left);
            }
        }
        let place = Place::new();
        let text = config(&afters, place.0.path());
        let config = understudy_config::parse_cluster("understudy.toml", &text).unwrap();
        let services = place.services(&config.services);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            services.primary().await.unwrap();
            services.stop_all().await.unwrap();
        });
        let lines = |file: &str| -> Vec<String> {
            let text = fs::read_to_string(place.path(file)).unwrap();
            text.lines().map(str::to_owned).collect()
        };
        let (started, mut stopped) = (lines("started"), lines("stopped"));
        for (at, name) in started.iter().enumerate() {
            let number: usize = name[1..].parse().unwrap();
            for before in &afters[number] {
                prop_assert!(started[..at].contains(&format!("s{before}")), "{started:?}");
            }
        }
        stopped.reverse();
        prop_assert_eq!(started.len(), 6);
        prop_assert_eq!(started, stopped);
    }
}
