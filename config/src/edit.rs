//! Changes to `understudy.toml` that keep what the operator wrote around them.

use std::net::SocketAddr;

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, TomlError, value};

use crate::NodeName;

/// Why the file cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The file is not TOML.
    #[error("the file is not valid TOML")]
    Syntax(#[from] TomlError),
    /// `node` is something else than sections.
    #[error("`node` is not written as `[[node]]` sections")]
    NotSections,
}

/// Returns the text with a `[[node]]` of that name and address.
///
/// A node of that name gets the address; if it has it already, the text is returned as it is.
pub fn add_node(text: &str, name: &NodeName, address: SocketAddr) -> Result<String, EditError> {
    let mut document: DocumentMut = text.parse()?;
    let nodes = document
        .entry("node")
        .or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()))
        .as_array_of_tables_mut()
        .ok_or(EditError::NotSections)?;
    let is_named =
        |node: &&mut Table| node.get("name").and_then(Item::as_str) == Some(name.as_str());
    let address = address.to_string();
    let Some(node) = nodes.iter_mut().find(is_named) else {
        let mut node = Table::new();
        node.insert("name", value(name.as_str()));
        node.insert("address", value(address));
        nodes.push(node);
        return Ok(document.to_string());
    };
    match node.get_mut("address").and_then(Item::as_value_mut) {
        Some(written) if written.as_str() == Some(address.as_str()) => return Ok(text.to_owned()),
        Some(written) => {
            // A comment behind the address stays.
            let decor = written.decor().clone();
            *written = address.into();
            *written.decor_mut() = decor;
        }
        None => {
            node.insert("address", value(address));
        }
    }
    Ok(document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# Ours.
[cluster]
name = "catalog" # the name

# The first.
[[node]]
name = "a"
address = "10.0.0.1:7400" # rack 1

[settings]
paths = ["/etc/catalog"] # all of it
"#;

    fn added(text: &str, name: &str, address: &str) -> String {
        add_node(text, &name.parse().unwrap(), address.parse().unwrap()).unwrap()
    }

    #[test]
    fn a_new_node_stands_behind_the_others_and_nothing_else_changes() {
        insta::assert_snapshot!(added(TEXT, "b", "10.0.0.2:7400"), @r#"
        # Ours.
        [cluster]
        name = "catalog" # the name

        # The first.
        [[node]]
        name = "a"
        address = "10.0.0.1:7400" # rack 1

        [[node]]
        name = "b"
        address = "10.0.0.2:7400"

        [settings]
        paths = ["/etc/catalog"] # all of it
        "#);
    }

    #[test]
    fn the_first_node_is_added_at_the_end() {
        insta::assert_snapshot!(added("[cluster]\nname = \"c\" # c\n", "a", "10.0.0.1:7400"), @r#"
        [cluster]
        name = "c" # c

        [[node]]
        name = "a"
        address = "10.0.0.1:7400"
        "#);
    }

    #[test]
    fn a_known_node_gets_the_address_and_keeps_its_comment() {
        let expected = TEXT.replace("10.0.0.1:7400", "[fd00::1]:7400");
        assert_eq!(added(TEXT, "a", "[fd00::1]:7400"), expected);
    }

    #[test]
    fn a_node_that_is_right_changes_nothing() {
        assert_eq!(added(TEXT, "a", "10.0.0.1:7400"), TEXT);
    }

    #[test]
    fn what_cannot_be_edited_is_refused() {
        let errors = ["node = 5", "node = ["].map(|text| {
            let error = add_node(text, &"a".parse().unwrap(), "10.0.0.1:1".parse().unwrap());
            error.unwrap_err().to_string()
        });
        assert_eq!(
            errors,
            [
                "`node` is not written as `[[node]]` sections",
                "the file is not valid TOML"
            ]
        );
    }
}
