//! "Did you mean": which known name a mistyped one may stand for.

/// The known name that differs least from `name`, where it differs little. Of equals the first.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = name.to_lowercase();
    let candidates = known.into_iter().map(|k| (distance(&wanted, &k.to_lowercase()), k));
    candidates.filter(|(d, k)| *d <= k.len().min(name.len()) / 3 + usize::from(k.len() > 1)).min_by_key(|(d, _)| *d).map(|(_, k)| k)
}

/// Edit distance; a swap of neighbours counts one. Only the first 64 characters count.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let (mut before, mut last): (Vec<usize>, Vec<usize>) = (vec![], (0..=b.len()).collect());
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let same = a[i - 1] == b[j - 1];
            row[j] = (last[j - 1] + usize::from(!same)).min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names() {
        let known = ["relu", "matmul", "conv", "softmax", "x"];
        assert_eq!(nearest("rleu", known), Some("relu"));
        assert_eq!(nearest("MatMul", known), Some("matmul"));
        assert_eq!(nearest("sofmax", known), Some("softmax"));
        assert_eq!(nearest("transpose", known), None);
        assert_eq!(nearest("z", known), None);
    }
}
