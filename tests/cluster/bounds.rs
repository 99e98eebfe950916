//! What a measurement must keep to, said in the same words whatever is measured.
//!
//! Invariant: a value that is not below its bound, and a count of nothing, are each told.

/// What did not hold of so many peers, which are called `who`: values with their bounds, and counts that must not
/// be none.
pub(crate) fn broken(
    who: &str,
    peers: usize,
    bounds: &[(&str, f64, f64)],
    counts: &[(&str, f64)],
) -> Vec<String> {
    let over = bounds.iter().filter(|(_, value, most)| value >= most);
    let over = over.map(|(what, value, most)| {
        format!("{peers} {who}: {value:.1} {what}, not below {most:.0}")
    });
    let none = counts.iter().filter(|(_, count)| *count <= 0.0);
    let none = none.map(|(what, _)| format!("{peers} {who}: no {what}"));
    over.chain(none).collect()
}
