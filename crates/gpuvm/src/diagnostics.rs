//! A profile's problems, shown with the lines that they are in.

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};
use gpuvm_core::profile::{Problem, ProblemKind};
use serde_json::json;

use crate::load::BadProfile;
use crate::out;

/// Renders all problems as rustc would.
pub(crate) fn render(profile: &BadProfile) -> String {
    let renderer = if out::stderr_is_terminal() { Renderer::styled() } else { Renderer::plain() };
    let one = |problem: &Problem| {
        let title = problem.kind.to_string();
        let hint = problem.kind.hint();
        let (name, text) = profile.sources.at(&problem.place)?;
        let title = Level::ERROR.primary_title(&title);
        // A key that is missing has no place of its own to point at.
        let group = match (&problem.kind, hint.as_deref()) {
            (ProblemKind::Missing { .. }, hint) => {
                let line = profile.sources.line(&problem.place);
                let group = title.element(Origin::path(name).line(line));
                group.elements(hint.map(|hint| Level::HELP.message(hint)))
            }
            (_, hint) => {
                let annotation = AnnotationKind::Primary.span(problem.place.span()).label(hint);
                title.element(Snippet::source(text).path(name).fold(true).annotation(annotation))
            }
        };
        Some(renderer.render(&[group]))
    };
    profile.problems.iter().filter_map(one).collect::<Vec<_>>().join("\n\n")
}

/// Renders all problems for a program.
pub(crate) fn to_json(profile: &BadProfile) -> Vec<serde_json::Value> {
    let one = |problem: &Problem| {
        json!({
            "file": profile.sources.at(&problem.place).map(|(name, _)| name),
            "line": profile.sources.line(&problem.place),
            "key": problem.key,
            "kind": crate::failure::kind(&problem.kind),
            "message": problem.kind.to_string(),
            "hint": problem.kind.hint(),
        })
    };
    profile.problems.iter().map(one).collect()
}
