//! Steps of optimisers: a parameter and what is kept for it, moved by a gradient. Each is one pass over its operands, whose results a target
//! computes in one kernel.

use crate::attrs::{Real, op_struct};
use crate::builder::V;
use crate::error::{Error, Result};
use crate::ops::Composite;
use crate::types::Type;

op_struct! {
    /// A step of Adam (Kingma, Ba: Adam: a method for stochastic optimization, 2015). Operands: w, its gradient g, the running means m of
    /// g and v of g², all of one type; scalars of its element type: the rate (divided by what m lacks for having begun at zero), what v is
    /// divided by for the same reason, and optionally the share of w that decays (Loshchilov, Hutter: Decoupled weight decay
    /// regularization, 2019). `weight_decay` times w is part of the gradient. Results: the next w, m and v.
    Adam { beta1: Real = Real(0.9), beta2: Real = Real(0.999), epsilon: Real = Real(1e-8), weight_decay: Real = Real(0.0) }
}

impl Composite for Adam {
    fn expand<'g>(&self, x: &[V<'g>]) -> Result<Vec<V<'g>>> {
        let (w, g, m, v, rate, lack, decay) = match x {
            [w, g, m, v, rate, lack] => (*w, *g, *m, *v, *rate, *lack, None),
            [w, g, m, v, rate, lack, decay] => (*w, *g, *m, *v, *rate, *lack, Some(*decay)),
            _ => return Err(Error::arity("adam takes w, g, m, v, rate, lack and optionally decay")),
        };
        let g = decayed(w, g, self.weight_decay);
        let average = |v: V<'g>, x: V<'g>, a: Real| v * w.scalar_like(a.0) + x * w.scalar_like(1.0 - a.0);
        let (m, v) = (average(m, g, self.beta1), average(v, g * g, self.beta2));
        let step = rate * m / ((v / lack).sqrt() + w.scalar_like(self.epsilon.0));
        let w = decay.map_or(w, |share| w - share * w);
        Ok(vec![w - step, m, v])
    }

    fn infer(&self, x: &[Type]) -> Option<Vec<Type>> {
        (self.is_plain(x) && matches!(x.len(), 6 | 7)).then(|| x[..3].to_vec())
    }
}

impl Adam {
    /// Whether nothing is stretched: tensors of one type, and scalars.
    pub fn is_plain(&self, x: &[Type]) -> bool {
        are_plain(x, 4)
    }
}

op_struct! {
    /// A step of gradient descent with momentum (Sutskever et al.: On the importance of initialization and momentum in deep learning, 2013).
    /// Operands: w, its gradient g, the velocity v, all of one type; scalars of its element type: the rate, and optionally what g counts in
    /// v. `weight_decay` times w is part of the gradient. Results: the next w and v.
    Momentum { momentum: Real, nesterov: bool = false, weight_decay: Real = Real(0.0) }
}

impl Composite for Momentum {
    fn expand<'g>(&self, x: &[V<'g>]) -> Result<Vec<V<'g>>> {
        let (w, g, v, rate, share) = match x {
            [w, g, v, rate] => (*w, *g, *v, *rate, None),
            [w, g, v, rate, share] => (*w, *g, *v, *rate, Some(*share)),
            _ => return Err(Error::arity("momentum takes w, g, v, rate and optionally share")),
        };
        let g = decayed(w, g, self.weight_decay);
        let slowed = |v: V<'g>| v * w.scalar_like(self.momentum.0);
        let v = slowed(v) + share.map_or(g, |share| g * share);
        let direction = if self.nesterov { g + slowed(v) } else { v };
        Ok(vec![w - rate * direction, v])
    }

    fn infer(&self, x: &[Type]) -> Option<Vec<Type>> {
        (self.is_plain(x) && matches!(x.len(), 4 | 5)).then(|| x[..2].to_vec())
    }
}

impl Momentum {
    /// As [`Adam::is_plain`].
    pub fn is_plain(&self, x: &[Type]) -> bool {
        are_plain(x, 3)
    }
}

/// The gradient with that of `decay / 2 |w|^2`.
fn decayed<'g>(w: V<'g>, g: V<'g>, decay: Real) -> V<'g> {
    if decay.0 == 0.0 { g } else { g + w * w.scalar_like(decay.0) }
}

/// Whether the first `n` types are one, and the others scalars of its element type.
fn are_plain(x: &[Type], n: usize) -> bool {
    let Some((first, rest)) = x.split_first() else { return false };
    first.dtype.is_float()
        && rest.len() >= n
        && rest.iter().enumerate().all(|(i, t)| if i + 1 < n { t == first } else { t.rank() == 0 && t.dtype == first.dtype })
}
