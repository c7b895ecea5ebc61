//! Which member may import what. `TABLE` is the law; a new arrow is a design page and a line here, not an accident.
//!
//! The table fences members and the crates in `FENCED`; every other library is free. Two kinds of rule: what a manifest
//! may name, and what a build may not reach through anybody.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Node, PackageId};

use crate::tree::Tree;

/// Families of crates that only named members may import: `tokio` stands for `tokio-util` too.
const FENCED: [&str; 11] = [
    "axum",
    "bincode",
    "candle",
    "cudarc",
    "minijinja",
    "nvml-wrapper",
    "quinn",
    "redb",
    "tokenizers",
    "tokio",
    "utoipa",
];

/// The rights of one member.
struct Row {
    member: &'static str,
    /// Members that its manifest may name.
    members: &'static [&'static str],
    /// Fenced crates that its manifest may name.
    crates: &'static [&'static str],
    /// What its build must not contain, whoever would bring it; tests are not part of a build.
    unreachable: &'static [&'static str],
}

const TABLE: [Row; 12] = [
    Row { member: "lorikeet-protocol", members: &[], crates: &["bincode"], unreachable: &["tokio", "quinn"] },
    Row {
        member: "lorikeet-api",
        members: &["lorikeet-protocol"],
        crates: &["utoipa"],
        unreachable: &["tokio", "quinn"],
    },
    Row {
        member: "lorikeet-dataset",
        members: &[],
        crates: &["tokenizers", "minijinja"],
        unreachable: &["candle", "tokio", "quinn"],
    },
    Row { member: "lorikeet-plan", members: &[], crates: &[], unreachable: &["candle", "tokio", "quinn"] },
    Row { member: "cuda-lazy", members: &[], crates: &[], unreachable: &["candle", "tokio", "quinn"] },
    Row {
        member: "lorikeet-trainer",
        members: &["lorikeet-dataset", "lorikeet-plan", "cuda-lazy"],
        crates: &["candle", "cudarc", "tokenizers"],
        unreachable: &["tokio", "quinn"],
    },
    // A user's file, tokenizer or template is read only by a child process with limits: never inside the coordinator.
    Row {
        member: "lorikeet-coordinator",
        members: &["lorikeet-protocol", "lorikeet-api", "lorikeet-plan"],
        crates: &["tokio", "quinn", "redb", "axum", "utoipa"],
        unreachable: &["candle", "tokenizers", "minijinja"],
    },
    Row {
        member: "lorikeet-agent",
        members: &["lorikeet-protocol"],
        crates: &["tokio", "quinn", "nvml-wrapper"],
        unreachable: &["candle", "redb", "tokenizers", "minijinja"],
    },
    // dataset and plan are the words of the trainer's own Config, and what `lorikeet inspect` judges files with.
    Row {
        member: "lorikeet-worker",
        members: &["lorikeet-protocol", "lorikeet-trainer", "lorikeet-dataset", "lorikeet-plan"],
        crates: &[],
        unreachable: &["quinn", "redb"],
    },
    Row {
        member: "lorikeet",
        members: &[
            "lorikeet-protocol",
            "lorikeet-api",
            "lorikeet-dataset",
            "lorikeet-plan",
            "lorikeet-trainer",
            "lorikeet-coordinator",
            "lorikeet-agent",
            "lorikeet-worker",
        ],
        crates: &["tokio", "tokenizers", "utoipa"],
        unreachable: &[],
    },
    // Tests may reach for anything, to play the hostile peer for one.
    Row {
        member: "lorikeet-tests",
        members: &[
            "lorikeet",
            "lorikeet-protocol",
            "lorikeet-api",
            "lorikeet-dataset",
            "lorikeet-plan",
            "lorikeet-trainer",
            "lorikeet-coordinator",
            "lorikeet-agent",
            "lorikeet-worker",
        ],
        crates: &FENCED,
        unreachable: &[],
    },
    // A broken member must not break its own checks.
    Row { member: "xtask", members: &[], crates: &[], unreachable: &[] },
];

/// One member as it is.
pub(super) struct Member {
    name: String,
    /// What its manifest names, for whatever target or kind, optional or not.
    named: BTreeSet<String>,
    /// Every crate that its plain Linux build contains.
    reached: BTreeSet<String>,
}

/// What is wrong between `members` and the table.
pub(super) fn judge(members: &[Member]) -> Vec<String> {
    let names: BTreeSet<&str> = members.iter().map(|member| member.name.as_str()).collect();
    members.iter().flat_map(|member| judge_member(member, &names)).collect()
}

fn judge_member(member: &Member, names: &BTreeSet<&str>) -> Vec<String> {
    let Some(row) = TABLE.iter().find(|row| row.member == member.name) else {
        return vec![format!("{}: a member without a row in xtask/src/tidy/arrow.rs", member.name)];
    };
    let arrows =
        member.named.iter().filter(|name| names.contains(name.as_str()) && !row.members.contains(&name.as_str()));
    let mut faults: Vec<String> =
        arrows.map(|name| format!("{}: may not import the member {name}", member.name)).collect();
    let fenced = member.named.iter().filter(|name| family(name).is_some_and(|family| !row.crates.contains(&family)));
    faults.extend(fenced.map(|name| format!("{}: may not import {name}", member.name)));
    let reached =
        member.reached.iter().filter(|name| family(name).is_some_and(|family| row.unreachable.contains(&family)));
    faults.extend(reached.map(|name| format!("{}: its build contains {name}, which it must never link", member.name)));
    faults
}

/// The fenced family that a crate belongs to.
fn family(name: &str) -> Option<&'static str> {
    FENCED
        .into_iter()
        .find(|family| name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')))
}

/// The members of the workspace as cargo sees them. Also proves that Cargo.lock is up to date.
pub(super) fn read(tree: &Tree) -> Result<Vec<Member>> {
    let options = ["--locked", "--filter-platform=x86_64-unknown-linux-gnu"].map(str::to_owned).to_vec();
    let manifest = tree.root().join("Cargo.toml");
    let metadata =
        MetadataCommand::new().manifest_path(manifest).other_options(options).exec().context("cargo metadata")?;
    let nodes = &metadata.resolve.as_ref().context("cargo metadata resolved nothing")?.nodes;
    let nodes: BTreeMap<&PackageId, &Node> = nodes.iter().map(|node| (&node.id, node)).collect();
    let members = metadata.workspace_packages().into_iter().map(|package| Member {
        name: package.name.to_string(),
        named: package.dependencies.iter().map(|dependency| dependency.name.clone()).collect(),
        reached: reach(&metadata, &nodes, &package.id),
    });
    Ok(members.collect())
}

fn reach(metadata: &Metadata, nodes: &BTreeMap<&PackageId, &Node>, from: &PackageId) -> BTreeSet<String> {
    let mut seen: BTreeSet<&PackageId> = BTreeSet::new();
    let mut open: Vec<&PackageId> = nodes.get(from).map(|node| built_by(node)).unwrap_or_default();
    while let Some(id) = open.pop() {
        if seen.insert(id) {
            open.extend(nodes.get(id).map(|node| built_by(node)).unwrap_or_default());
        }
    }
    seen.into_iter().map(|id| metadata[id].name.to_string()).collect()
}

/// The direct dependencies that end up in the product: not those of tests, nor of build scripts.
fn built_by(node: &Node) -> Vec<&PackageId> {
    let normal = node.deps.iter().filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal));
    normal.map(|dep| &dep.pkg).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_arrows_pass() {
        let protocol = member("lorikeet-protocol", &["serde", "bincode"], &["serde", "bincode"]);
        let agent = member("lorikeet-agent", &["lorikeet-protocol", "tokio-util", "quinn"], &["tokio", "bincode"]);
        assert_eq!(judge(&[protocol, agent]), Vec::<String>::new());
    }

    #[test]
    fn a_new_arrow_between_members_is_named() {
        let api = member("lorikeet-api", &["lorikeet-protocol", "lorikeet-agent"], &[]);
        let faults = judge(&[api, member("lorikeet-agent", &[], &[]), member("lorikeet-protocol", &[], &[])]);
        assert_eq!(faults, ["lorikeet-api: may not import the member lorikeet-agent"]);
    }

    #[test]
    fn a_fenced_crate_in_the_wrong_member_is_named_with_its_whole_family() {
        let faults = judge(&[member("lorikeet", &["redb", "quinn-proto", "tokio"], &["redb"])]);
        assert_eq!(faults, ["lorikeet: may not import quinn-proto", "lorikeet: may not import redb"]);
    }

    #[test]
    fn a_crate_that_merely_begins_alike_is_free() {
        assert_eq!(family("tokiors"), None);
        assert_eq!(family("candle-core"), Some("candle"));
    }

    #[test]
    fn the_agent_never_links_candle_through_anybody() {
        let faults = judge(&[member("lorikeet-agent", &["innocent"], &["innocent", "candle-core"])]);
        assert_eq!(faults, ["lorikeet-agent: its build contains candle-core, which it must never link"]);
    }

    #[test]
    fn a_member_without_a_row_is_named() {
        let faults = judge(&[member("lorikeet-new", &[], &[])]);
        assert_eq!(faults, ["lorikeet-new: a member without a row in xtask/src/tidy/arrow.rs"]);
    }

    fn member(name: &str, named: &[&str], reached: &[&str]) -> Member {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Member { name: name.to_owned(), named: set(named), reached: set(reached) }
    }
}
