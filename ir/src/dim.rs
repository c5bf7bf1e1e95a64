//! Dimensions: integers that may be known only at run time.
//!
//! A [`Dim`] is a constant or an integer expression over named symbols, kept in a canonical form (a sum of products with opaque
//! atoms for division, minimum, maximum and broadcasting), so that equal expressions written differently usually compare equal.
//! Units: elements. Arithmetic saturates at the ends of `i64`; [`Dim::checked_len`] is how byte and element counts are taken.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Add, Mul, Sub};
use std::sync::Arc;

/// A factor that the canonical form does not look into.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Atom {
    Sym(Arc<str>),
    FloorDiv(Dim, Dim),
    Mod(Dim, Dim),
    Max(Dim, Dim),
    Min(Dim, Dim),
    /// The length that two broadcast to: see [`Dim::stretch`].
    Stretch(Dim, Dim),
}

/// Sum of `coefficient * product of atoms`; the empty product is the constant term. No zero coefficients.
type Terms = BTreeMap<Vec<Atom>, i64>;

/// A dimension: a constant or an expression over symbols.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dim {
    Const(i64),
    /// Invariant: not a constant.
    Expr(Arc<Terms>),
}

/// A view of one [`Dim`] node for passes that compile dimensions to code.
pub enum DimNode<'a> {
    Const(i64),
    /// Sum of `coefficient * atoms`.
    Sum(Vec<(i64, &'a [Atom])>),
}

impl Dim {
    pub fn sym(name: impl AsRef<str>) -> Dim {
        Dim::atom(Atom::Sym(name.as_ref().into()))
    }

    fn atom(atom: Atom) -> Dim {
        Dim::Expr(Arc::new(Terms::from([(vec![atom], 1)])))
    }

    fn from_terms(mut terms: Terms) -> Dim {
        terms.retain(|_, c| *c != 0);
        match terms.len() {
            0 => Dim::Const(0),
            1 if terms.contains_key(&vec![]) => Dim::Const(terms[&vec![]]),
            _ => Dim::Expr(Arc::new(terms)),
        }
    }

    fn terms(&self) -> Terms {
        match self {
            Dim::Const(c) => Terms::from([(vec![], *c)]),
            Dim::Expr(t) => (**t).clone(),
        }
    }

    /// The structure of the expression, one level deep.
    pub fn node(&self) -> DimNode<'_> {
        match self {
            Dim::Const(c) => DimNode::Const(*c),
            Dim::Expr(t) => DimNode::Sum(t.iter().map(|(k, c)| (*c, k.as_slice())).collect()),
        }
    }

    /// The sum of these products: what [`Dim::node`] takes apart.
    pub fn sum(products: impl IntoIterator<Item = (i64, Vec<Atom>)>) -> Dim {
        let mut terms = Terms::new();
        for (c, mut atoms) in products {
            atoms.sort();
            let slot = terms.entry(atoms).or_insert(0);
            *slot = slot.saturating_add(c);
        }
        Dim::from_terms(terms)
    }

    #[inline]
    pub fn as_const(&self) -> Option<i64> {
        match self {
            Dim::Const(c) => Some(*c),
            Dim::Expr(_) => None,
        }
    }

    #[inline]
    pub fn is(&self, value: i64) -> bool {
        *self == Dim::Const(value)
    }

    /// The symbol's name where the dimension is just a symbol.
    pub fn as_sym(&self) -> Option<&Arc<str>> {
        let Dim::Expr(t) = self else { return None };
        match t.iter().next() {
            Some((k, 1)) if t.len() == 1 => match k.as_slice() {
                [Atom::Sym(s)] => Some(s),
                _ => None,
            },
            _ => None,
        }
    }

    /// Floor division. `Some` exact quotient where every coefficient divides; an opaque atom otherwise. A zero divisor gives 0.
    pub fn floor_div(&self, by: &Dim) -> Dim {
        if self == by && !by.is(0) {
            return Dim::Const(1);
        }
        match (self, by) {
            (_, Dim::Const(0)) => Dim::Const(0),
            (_, Dim::Const(1)) => self.clone(),
            (Dim::Const(a), Dim::Const(b)) => Dim::Const(floor_div(*a, *b)),
            (Dim::Const(0), _) => Dim::Const(0),
            (Dim::Expr(t), Dim::Const(b)) => {
                // (b*q + r) / b = q + r/b holds for floor division with any integer q.
                let (q, r): (Terms, Terms) = t.iter().map(|(k, c)| (k.clone(), *c)).partition(|(_, c)| c.wrapping_rem(*b) == 0);
                let q = Dim::from_terms(q.into_iter().map(|(k, c)| (k, floor_div(c, *b))).collect());
                let r = Dim::from_terms(r);
                match r {
                    Dim::Const(_) => q + r.floor_div(by),
                    // The constant part of r can be brought into 0..b as well.
                    _ => {
                        let mut rt = r.terms();
                        let c0 = rt.remove(&vec![]).unwrap_or(0);
                        let carry = c0.checked_div_euclid(*b).unwrap_or(i64::MAX);
                        let rest = Dim::from_terms(rt) + Dim::Const(c0.saturating_sub(carry.saturating_mul(*b)));
                        q + Dim::Const(carry) + Dim::atom(Atom::FloorDiv(rest, by.clone()))
                    }
                }
            }
            _ => {
                if let Some(q) = self.exact_div(by) {
                    return q;
                }
                Dim::atom(Atom::FloorDiv(self.clone(), by.clone()))
            }
        }
    }

    /// The quotient where `by` is a single product that divides every term.
    fn exact_div(&self, by: &Dim) -> Option<Dim> {
        let by = by.terms();
        let (factors, coef) = by.iter().next().filter(|_| by.len() == 1)?;
        let mut out = Terms::new();
        for (k, c) in self.terms() {
            if c.wrapping_rem(*coef) != 0 {
                return None;
            }
            let mut rest = k;
            for f in factors {
                let at = rest.iter().position(|a| a == f)?;
                rest.remove(at);
            }
            out.insert(rest, floor_div(c, *coef));
        }
        Some(Dim::from_terms(out))
    }

    pub fn ceil_div(&self, by: &Dim) -> Dim {
        (self.clone() + by.clone() - Dim::Const(1)).floor_div(by)
    }

    /// Remainder with the divisor's sign (`a - b * floor(a / b)`).
    pub fn modulo(&self, by: &Dim) -> Dim {
        let q = self.floor_div(by);
        match q.node() {
            DimNode::Sum(t) if t.iter().any(|(_, k)| k.iter().any(|a| matches!(a, Atom::FloorDiv(..)))) => {
                Dim::atom(Atom::Mod(self.clone(), by.clone()))
            }
            _ => self.clone() - by.clone() * q,
        }
    }

    /// A number that the value is never below, sizes being at least 0. `None` where there is none to be seen.
    pub fn least(&self) -> Option<i64> {
        let Dim::Expr(t) = self else { return self.as_const() };
        t.iter().try_fold(0i64, |sum, (atoms, c)| match atoms.as_slice() {
            [] => Some(sum.saturating_add(*c)),
            [one] if *c > 0 => Some(sum.saturating_add(one.least()?.saturating_mul(*c))),
            several if *c > 0 && several.iter().all(|a| a.least().is_some_and(|l| l >= 0)) => Some(sum),
            _ => None,
        })
    }

    /// Whether the value is at least that of `other`, whatever the sizes.
    pub(crate) fn never_below(&self, other: &Dim) -> bool {
        (self - other).least().is_some_and(|l| l >= 0)
    }

    pub fn maximum(&self, other: &Dim) -> Dim {
        if self.never_below(other) {
            return self.clone();
        }
        if other.never_below(self) {
            return other.clone();
        }
        let (a, b) = if self < other { (self, other) } else { (other, self) };
        Dim::atom(Atom::Max(a.clone(), b.clone()))
    }

    pub fn minimum(&self, other: &Dim) -> Dim {
        if self.never_below(other) {
            return other.clone();
        }
        if other.never_below(self) {
            return self.clone();
        }
        let (a, b) = if self < other { (self, other) } else { (other, self) };
        Dim::atom(Atom::Min(a.clone(), b.clone()))
    }

    /// The length that axes of these two lengths broadcast to: they are equal, or one is 1 and the other it is. Whoever relies on that
    /// checks it. Of several operands one expression in whatever order they meet.
    pub fn stretch(&self, other: &Dim) -> Dim {
        let mut lengths = vec![];
        let mut left = vec![other, self];
        while let Some(d) = left.pop() {
            match d.as_stretch() {
                Some((a, b)) => left.extend([b, a]),
                // What cannot be 1 is what the others are stretched to.
                None if d.as_const().is_some_and(|d| d != 1) || d.least().is_some_and(|l| l > 1) => return d.clone(),
                None if d.is(1) => {}
                None => lengths.push(d.clone()),
            }
        }
        lengths.sort();
        lengths.dedup();
        let joined = lengths.into_iter().rev().reduce(|all, d| Dim::atom(Atom::Stretch(d, all)));
        joined.unwrap_or(Dim::Const(1))
    }

    fn as_stretch(&self) -> Option<(&Dim, &Dim)> {
        let Dim::Expr(t) = self else { return None };
        match t.iter().next() {
            Some((k, 1)) if t.len() == 1 => match k.as_slice() {
                [Atom::Stretch(a, b)] => Some((a, b)),
                _ => None,
            },
            _ => None,
        }
    }

    /// `stretch(a, b)` by the other functions: the larger, but 0 beside a 0.
    pub fn stretch_formula(a: &Dim, b: &Dim) -> Dim {
        a.maximum(b) * a.minimum(b).minimum(&Dim::Const(1))
    }

    /// What the index of an axis of this length is multiplied by where the axis is stretched to `whole`: 0 or 1, by the run where
    /// only that knows.
    pub fn stretch_factor(&self, whole: &Dim) -> Dim {
        let one = Dim::Const(1);
        if self == whole {
            one
        } else if self.is(1) {
            Dim::Const(0)
        } else {
            (self.clone() - one.clone()).minimum(&one)
        }
    }

    /// The value under `env`; the missing symbol's name where one is not bound.
    pub fn eval(&self, env: &dyn Fn(&str) -> Option<i64>) -> Result<i64, Arc<str>> {
        let Dim::Expr(t) = self else { return Ok(self.as_const().unwrap_or(0)) };
        let mut sum = 0i64;
        for (atoms, c) in t.iter() {
            let mut product = *c;
            for a in atoms {
                product = product.saturating_mul(a.eval(env)?);
            }
            sum = sum.saturating_add(product);
        }
        Ok(sum)
    }

    /// The expression with symbols replaced.
    pub fn substitute(&self, env: &dyn Fn(&str) -> Option<Dim>) -> Dim {
        let Dim::Expr(t) = self else { return self.clone() };
        let mut sum = Dim::Const(0);
        for (atoms, c) in t.iter() {
            let mut product = Dim::Const(*c);
            for a in atoms {
                let v = match a {
                    Atom::Sym(s) => env(s).unwrap_or_else(|| Dim::atom(a.clone())),
                    Atom::FloorDiv(x, y) => x.substitute(env).floor_div(&y.substitute(env)),
                    Atom::Mod(x, y) => x.substitute(env).modulo(&y.substitute(env)),
                    Atom::Max(x, y) => x.substitute(env).maximum(&y.substitute(env)),
                    Atom::Min(x, y) => x.substitute(env).minimum(&y.substitute(env)),
                    Atom::Stretch(x, y) => x.substitute(env).stretch(&y.substitute(env)),
                };
                product = product * v;
            }
            sum = sum + product;
        }
        sum
    }

    /// Calls `f` for every symbol that occurs.
    pub fn symbols(&self, f: &mut dyn FnMut(&Arc<str>)) {
        let Dim::Expr(t) = self else { return };
        for a in t.keys().flatten() {
            match a {
                Atom::Sym(s) => f(s),
                Atom::FloorDiv(x, y) | Atom::Mod(x, y) | Atom::Max(x, y) | Atom::Min(x, y) | Atom::Stretch(x, y) => {
                    x.symbols(f);
                    y.symbols(f);
                }
            }
        }
    }

    /// Product of constant dimensions as a count; `None` where one is symbolic or negative, or the product overflows `isize`.
    pub fn checked_len(dims: &[Dim]) -> Option<usize> {
        dims.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(d.as_const()?).ok()?)).filter(|n| isize::try_from(*n).is_ok())
    }

    pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
        dims.into_iter().fold(Dim::Const(1), |a, b| a * b.clone())
    }
}

/// The quotient rounded down; 0 where the divisor is 0. The one quotient that no `i64` is saturates.
fn floor_div(a: i64, b: i64) -> i64 {
    match (a.checked_div(b), b) {
        (Some(q), _) => q - i64::from(a.wrapping_rem(b) != 0 && (a < 0) != (b < 0)),
        (None, 0) => 0,
        (None, _) => i64::MAX,
    }
}

impl Atom {
    /// As [`Dim::least`].
    fn least(&self) -> Option<i64> {
        match self {
            Atom::Sym(_) => Some(0),
            Atom::FloorDiv(a, b) => (a.least()? >= 0 && b.least()? >= 0).then_some(0),
            Atom::Mod(_, b) => (b.least()? >= 0).then_some(0),
            Atom::Max(a, b) => a.least().max(b.least()),
            Atom::Min(a, b) | Atom::Stretch(a, b) => Some(a.least()?.min(b.least()?)),
        }
    }

    fn eval(&self, env: &dyn Fn(&str) -> Option<i64>) -> Result<i64, Arc<str>> {
        Ok(match self {
            Atom::Sym(s) => return env(s).ok_or_else(|| s.clone()),
            Atom::FloorDiv(a, b) => floor_div(a.eval(env)?, b.eval(env)?),
            Atom::Mod(a, b) => {
                let (a, b) = (a.eval(env)?, b.eval(env)?);
                a.saturating_sub(b.saturating_mul(floor_div(a, b)))
            }
            Atom::Max(a, b) => a.eval(env)?.max(b.eval(env)?),
            Atom::Min(a, b) => a.eval(env)?.min(b.eval(env)?),
            Atom::Stretch(a, b) => match (a.eval(env)?, b.eval(env)?) {
                (1, b) => b,
                (a, _) => a,
            },
        })
    }
}

impl Default for Dim {
    fn default() -> Dim {
        Dim::Const(0)
    }
}

impl From<i64> for Dim {
    fn from(v: i64) -> Dim {
        Dim::Const(v)
    }
}

impl From<usize> for Dim {
    fn from(v: usize) -> Dim {
        Dim::Const(i64::try_from(v).unwrap_or(i64::MAX))
    }
}

impl Add for Dim {
    type Output = Dim;
    fn add(self, other: Dim) -> Dim {
        if let (Dim::Const(a), Dim::Const(b)) = (&self, &other) {
            return Dim::Const(a.saturating_add(*b));
        }
        let mut terms = self.terms();
        for (k, c) in other.terms() {
            let slot = terms.entry(k).or_insert(0);
            *slot = slot.saturating_add(c);
        }
        Dim::from_terms(terms)
    }
}

impl Sub for Dim {
    type Output = Dim;
    fn sub(self, other: Dim) -> Dim {
        self + other * Dim::Const(-1)
    }
}

impl Sub for &Dim {
    type Output = Dim;
    fn sub(self, other: &Dim) -> Dim {
        self.clone() - other.clone()
    }
}

impl Mul for Dim {
    type Output = Dim;
    fn mul(self, other: Dim) -> Dim {
        if let (Dim::Const(a), Dim::Const(b)) = (&self, &other) {
            return Dim::Const(a.saturating_mul(*b));
        }
        let mut terms = Terms::new();
        for (ka, ca) in self.terms() {
            for (kb, cb) in other.terms() {
                let mut k: Vec<Atom> = ka.iter().chain(&kb).cloned().collect();
                k.sort();
                let slot = terms.entry(k).or_insert(0);
                *slot = slot.saturating_add(ca.saturating_mul(cb));
            }
        }
        Dim::from_terms(terms)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Dim::Expr(t) = self else { return write!(f, "{}", self.as_const().unwrap_or(0)) };
        // Largest products first, the constant last: `2*N*H + 1`.
        for (i, (atoms, c)) in t.iter().rev().enumerate() {
            match (i, *c < 0) {
                (0, true) => write!(f, "-")?,
                (0, false) => {}
                (_, true) => write!(f, " - ")?,
                (_, false) => write!(f, " + ")?,
            }
            let c = c.unsigned_abs();
            if c != 1 || atoms.is_empty() {
                write!(f, "{c}{}", if atoms.is_empty() { "" } else { "*" })?;
            }
            for (j, a) in atoms.iter().enumerate() {
                write!(f, "{}{a}", if j > 0 { "*" } else { "" })?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Sym(s) => write!(f, "{s}"),
            Atom::FloorDiv(a, b) => write!(f, "floordiv({a}, {b})"),
            Atom::Mod(a, b) => write!(f, "mod({a}, {b})"),
            Atom::Max(a, b) => write!(f, "max({a}, {b})"),
            Atom::Min(a, b) => write!(f, "min({a}, {b})"),
            Atom::Stretch(a, b) => write!(f, "stretch({a}, {b})"),
        }
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_the_numbers() {
        let (least, minus) = (Dim::Const(i64::MIN), Dim::Const(-1));
        assert_eq!(least.floor_div(&minus), Dim::Const(i64::MAX));
        assert_eq!((Dim::Const(-7).floor_div(&Dim::Const(2)), Dim::Const(7).floor_div(&Dim::Const(-2))), (Dim::Const(-4), Dim::Const(-4)));
        let n = Dim::sym("N") * least.clone();
        assert_eq!(n.floor_div(&minus), Dim::sym("N") * Dim::Const(i64::MAX));
        let atom = Dim::sum([(1, vec![Atom::FloorDiv(Dim::sym("a"), Dim::sym("b"))])]);
        assert_eq!(atom.eval(&|s| Some(if s == "a" { i64::MIN } else { -1 })), Ok(i64::MAX));
        assert_eq!(atom.eval(&|_| Some(0)), Ok(0));
    }

    #[test]
    fn taken_apart_and_put_together() {
        let (n, h) = (Dim::sym("N"), Dim::sym("H"));
        let d = n.clone() * h.clone() * Dim::Const(3) + (h + Dim::Const(1)).floor_div(&Dim::Const(2)) - Dim::Const(5);
        let DimNode::Sum(products) = d.node() else { panic!("{d} is a sum") };
        assert_eq!(Dim::sum(products.into_iter().rev().map(|(c, atoms)| (c, atoms.iter().rev().cloned().collect()))), d);
        assert_eq!(Dim::sum([(2, vec![]), (1, vec![])]), Dim::Const(3));
    }

    #[test]
    fn canonical() {
        let (n, h) = (Dim::sym("N"), Dim::sym("H"));
        assert_eq!(n.clone() + h.clone() - n.clone(), h);
        assert_eq!((n.clone() * h.clone()).floor_div(&h), n);
        assert_eq!((Dim::Const(4) * n.clone() + Dim::Const(3)).floor_div(&Dim::Const(2)), Dim::Const(2) * n.clone() + Dim::Const(1));
        assert_eq!((n.clone() + Dim::Const(1)).maximum(&n), n.clone() + Dim::Const(1));
        assert_eq!(((h + Dim::Const(5)).floor_div(&Dim::Const(2)) * n).to_string(), "N*floordiv(H + 1, 2) + 2*N");
    }

    #[test]
    fn sizes_are_not_negative() {
        let (n, c) = (Dim::sym("N"), Dim::Const);
        assert_eq!(n.maximum(&c(0)), n);
        assert_eq!(n.minimum(&c(0)), c(0));
        assert_eq!((n.clone() * n.clone() + c(3)).maximum(&c(2)), n.clone() * n.clone() + c(3));
        assert_eq!(n.maximum(&c(1)).minimum(&c(1)), c(1));
        assert_eq!((n.clone() - c(1)).maximum(&c(0)).to_string(), "max(0, N - 1)");
    }

    #[test]
    fn stretching_is_one_expression() {
        let (n, m, k, c) = (Dim::sym("N"), Dim::sym("M"), Dim::sym("K"), Dim::Const);
        assert_eq!(n.stretch(&m), m.stretch(&n));
        assert_eq!(n.stretch(&m).stretch(&k), k.stretch(&n).stretch(&m.stretch(&n)));
        assert_eq!((n.stretch(&n), n.stretch(&c(1)), c(7).stretch(&n)), (n.clone(), n.clone(), c(7)));
        let more = n.clone() + c(2);
        assert_eq!(m.stretch(&more), more, "what is never 1 is not stretched");
        for (a, b, want) in [(1, 1, 1), (1, 5, 5), (5, 1, 5), (5, 5, 5), (0, 1, 0), (1, 0, 0), (0, 0, 0)] {
            let env = |s: &str| Some(if s == "N" { a } else { b });
            assert_eq!(n.stretch(&m).eval(&env), Ok(want));
            assert_eq!(Dim::stretch_formula(&n, &m).eval(&env), Ok(want));
            assert_eq!(n.stretch(&m).substitute(&|s| env(s).map(c)), c(want));
            let factor = n.stretch_factor(&n.stretch(&m)).eval(&env);
            assert!(want == 0 || factor == Ok(i64::from(a != 1)), "{a} to {want}: {factor:?}");
        }
    }

    #[test]
    fn constants_fold_like_floor_division() {
        for a in -7..8 {
            for b in [-3, -2, 2, 3] {
                let want = (a as f64 / b as f64).floor() as i64;
                assert_eq!(Dim::Const(a).floor_div(&Dim::Const(b)), Dim::Const(want), "{a}/{b}");
                let sym = Dim::sym("a").floor_div(&Dim::Const(b)).eval(&|_| Some(a));
                assert_eq!(sym, Ok(want), "{a}/{b}");
                let shifted = (Dim::sym("a") + Dim::Const(7)).floor_div(&Dim::Const(b)).eval(&|_| Some(a));
                assert_eq!(shifted, Ok(((a + 7) as f64 / b as f64).floor() as i64));
            }
        }
    }
}
