//! Two networks between two nodes: the loss of one is told, and changes nothing.

use std::fs;

use serde_json::Value;

use crate::world::{Machine, Network, Pair, Plan, holds, until};

fn links(machine: &Machine) -> Vec<(String, bool)> {
    let status = machine.try_status().unwrap_or_default();
    let link = |link: &Value| {
        let address = link["address"].as_str()?.to_owned();
        Some((address, link["is_up"].as_bool()?))
    };
    let links = status["links"].as_array().cloned().unwrap_or_default();
    links.iter().filter_map(link).collect()
}

fn wait_for_links(machine: &Machine, expected: [bool; 2]) {
    until(
        &format!("the links of {}", machine.name),
        Pair::PATIENCE,
        || {
            let links = links(machine);
            let up: Vec<bool> = links.iter().map(|(_, is_up)| *is_up).collect();
            holds(up == expected, &links)
        },
    );
}

#[test]
fn m08_the_loss_of_one_of_two_links_is_a_warning_and_everything_goes_on() {
    let Some(mut network) =
        Network::new("m08_the_loss_of_one_of_two_links_is_a_warning_and_everything_goes_on")
    else {
        return;
    };
    network.add_second();
    let mut pair = Pair::on(network, Plan::files());
    for machine in [&pair.a, &pair.b] {
        let mut text = fs::read_to_string(machine.cluster_file()).unwrap();
        for node in ["a", "b"] {
            let first = format!("\"{}:", Network::ip(node));
            let at = text.find(&first).unwrap();
            let end = at + text[at..].find('\n').unwrap();
            let second = format!("\nsecond_address = \"{}:7400\"", Network::second_ip(node));
            text.insert_str(end, &second);
        }
        fs::write(machine.cluster_file(), text).unwrap();
    }
    for machine in [&mut pair.a, &mut pair.b] {
        assert_eq!(machine.stop(), Some(0));
        machine.serve();
    }
    for machine in [&pair.a, &pair.b] {
        wait_for_links(machine, [true, true]);
    }
    pair.network.as_ref().unwrap().cut();
    for (machine, peer) in [(&pair.a, "b"), (&pair.b, "a")] {
        wait_for_links(machine, [false, true]);
        machine.wait_for_event("link_lost", &format!("node {peer} does not answer"));
        let text = machine.understudy(&["status"]);
        assert!(text.contains("LINK"), "{text}");
    }
    // Everything that goes between the nodes takes the other way, and so does a fence.
    pair.write(1);
    pair.wait_long();
    pair.b.understudy(&["promote"]);
    pair.assert_b_is_primary();
    assert_eq!(pair.a.role(), "fenced");
    pair.network.as_ref().unwrap().mend();
    wait_for_links(&pair.b, [true, true]);
    pair.b.wait_for_event("link_back", "answers at");
}
