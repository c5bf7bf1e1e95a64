//! Modules: instances, which bind hyper-parameters, and their calls.

use super::ast::{self, ExprKind};
use super::elaborate::{Elab, Eval, Frame, Stop, did_you_mean};
use super::lex::Pos;
use super::value::{Instance, Val};
use nnc_ir::Error;
use nnc_ir::print::TypeText;
use std::rc::Rc;
use std::sync::Arc;

impl<'a, 'g> Elab<'a, 'g> {
    pub(super) fn call(&self, call: &'a ast::Call, pos: Pos, frame: &mut Frame<'g>, hint: Option<&str>, results: usize) -> Eval<Val<'g>> {
        let module = match &call.callee.kind {
            ExprKind::Name(n) => match frame.get(&n.text) {
                Some(Val::Instance(i)) => Some(i.clone()),
                // A tensor does not hide the operator of its name.
                _ => match self.shared.modules.get(&*n.text) {
                    None => return self.operator(&n.text, call, frame, results),
                    Some(&k) if self.shared.file.modules[k].hyper.is_some() => return self.instance(k, call, frame, hint),
                    Some(&k) => {
                        let path = frame.unique(&n.text);
                        Some(Rc::new(Instance { module: k, hyper: vec![], path }))
                    }
                },
            },
            _ => match self.eval(&call.callee, frame)? {
                Val::Instance(i) => Some(i),
                v => return Err(Error::name(format!("{} cannot be called", v.kind())).into()),
            },
        };
        let Some(instance) = module else { return Err(Stop::Poison) };
        self.apply(&instance, call, pos, frame)
    }

    /// `Conv(64, 3, stride=2)`: binds hyper-parameters.
    fn instance(&self, k: usize, call: &'a ast::Call, frame: &mut Frame<'g>, hint: Option<&str>) -> Eval<Val<'g>> {
        let module = &self.shared.file.modules[k];
        let hyper = module.hyper.as_deref().unwrap_or(&[]);
        let what = &module.name.text;
        if call.args.len() > hyper.len() {
            return Err(Error::arity(format!("`{what}` takes {} hyper-parameters, {} are given", hyper.len(), call.args.len())).into());
        }
        let mut given: Vec<Option<Val<'g>>> = vec![None; hyper.len()];
        for (slot, e) in given.iter_mut().zip(&call.args) {
            *slot = Some(self.eval(e, frame)?);
        }
        let mut name = None;
        for (n, e) in &call.named {
            let v = self.eval(e, frame)?;
            match hyper.iter().position(|h| h.name.text == n.text) {
                Some(i) if given[i].is_some() => {
                    return Err(Error::arity(format!("`{}` is given twice", n.text)).at(&self.shared.loc(n.pos)).into());
                }
                Some(i) => given[i] = Some(v),
                None if &*n.text == "name" => match v {
                    Val::Str(s) => name = Some((s, n.pos)),
                    v => return Err(Error::attribute(format!("a name is a string, not {}", v.kind())).into()),
                },
                None => {
                    let e = Error::name(format!("`{what}` has no hyper-parameter `{}`", n.text)).at(&self.shared.loc(n.pos));
                    return Err(did_you_mean(e, &n.text, hyper.iter().map(|h| &*h.name.text)).into());
                }
            }
        }
        // Defaults see the hyper-parameters before them.
        let mut inner = Frame::new(String::new());
        let mut values = vec![];
        for (h, v) in hyper.iter().zip(given) {
            let v = match (v, &h.default) {
                (Some(v), _) => v,
                (None, Some(e)) => self.eval(e, &mut inner)?,
                (None, None) => return Err(Error::arity(format!("`{what}` needs the hyper-parameter `{}`", h.name.text)).into()),
            };
            inner.vars.insert(h.name.text.clone(), v.clone());
            values.push((h.name.text.clone(), v));
        }
        let path = match name {
            Some((s, pos)) if s.contains('.') => {
                return Err(Error::name(format!("the name {s:?} has a point, which parts names in a path")).at(&self.shared.loc(pos)).into());
            }
            Some((s, pos)) if frame.used.contains_key(&*s) => {
                return Err(Error::name(format!("two things are called {s:?} here")).at(&self.shared.loc(pos)).into());
            }
            Some((s, _)) => frame.unique(&s),
            None => frame.unique(hint.unwrap_or(what)),
        };
        Ok(Val::Instance(Rc::new(Instance { module: k, hyper: values, path })))
    }

    /// Calls an instance on inputs.
    fn apply(&self, instance: &Instance<'g>, call: &'a ast::Call, pos: Pos, frame: &mut Frame<'g>) -> Eval<Val<'g>> {
        let module = &self.shared.file.modules[instance.module];
        let (what, inputs) = (&module.name.text, &module.body.inputs);
        let mut inner = Frame::new(instance.path.clone());
        inner.called = Some((what.clone(), pos));
        inner.vars.extend(instance.hyper.iter().cloned());
        if call.args.len() + call.named.len() != inputs.len() {
            let (want, given) = (inputs.len(), call.args.len() + call.named.len());
            return Err(Error::arity(format!("`{what}` takes {want} inputs, {given} are given")).into());
        }
        for (input, e) in inputs.iter().zip(&call.args) {
            let v = self.eval(e, frame)?;
            inner.vars.insert(input.name.text.clone(), v);
        }
        for (n, e) in &call.named {
            let v = self.eval(e, frame)?;
            let known = inputs[call.args.len()..].iter().any(|i| i.name.text == n.text);
            if !known {
                let e = Error::name(format!("`{what}` has no input `{}` that is not given", n.text)).at(&self.shared.loc(n.pos));
                return Err(did_you_mean(e, &n.text, inputs.iter().map(|i| &*i.name.text)).into());
            }
            inner.vars.insert(n.text.clone(), v);
        }
        for input in inputs {
            if let Some(ty) = &input.ty {
                self.matches(ty, &input.name.text, &mut inner).map_err(|stop| match stop {
                    Stop::Error(e) => Stop::Error(e.at(&self.shared.loc(pos))),
                    stop => stop,
                })?;
            }
        }
        let Some((pos, values, _)) = self.shared.nested(|| Ok(self.block(&module.body.block, &mut inner)))? else {
            return Err(Error::name(format!("`{what}` returns nothing")).into());
        };
        if let Some(declared) = &module.body.results {
            if declared.len() != values.len() {
                let e = Error::arity(format!("`{what}` declares {} results and returns {}", declared.len(), values.len()));
                return Err(e.at(&self.shared.loc(pos)).into());
            }
            for (d, v) in declared.iter().zip(&values) {
                self.annotated(&d.ty, v, &mut inner).map_err(|stop| match stop {
                    Stop::Error(e) => Stop::Error(e.at(&self.shared.loc(d.ty.pos))),
                    stop => stop,
                })?;
            }
        }
        if values.iter().any(|v| matches!(v, Val::Poison)) {
            return Err(Stop::Poison);
        }
        Ok(match <[Val; 1]>::try_from(values) {
            Ok([v]) => v,
            Err(values) => Val::Tuple(values),
        })
    }

    /// Holds an argument against the input's type; names of dimensions that are not bound yet are bound by it.
    fn matches(&self, ty: &'a ast::TypeExpr, input: &Arc<str>, inner: &mut Frame<'g>) -> Eval<()> {
        let found = match inner.get(input) {
            Some(Val::Tensor(v)) => v.ty(),
            Some(v) => return Err(Error::dtype(format!("the input `{input}` is a tensor, {} is given", v.kind())).into()),
            None => return Err(Error::arity(format!("the input `{input}` is missing")).into()),
        };
        if ty.dtype != found.dtype || ty.dims.len() != found.rank() {
            let e = format!("the input `{input}` is {} of rank {}, {} is given", ty.dtype, ty.dims.len(), TypeText(&found));
            return Err(if ty.dtype != found.dtype { Error::dtype(e) } else { Error::shape(e) }.into());
        }
        for (e, d) in ty.dims.iter().zip(&found.shape) {
            if let ExprKind::Name(n) = &e.kind
                && inner.get(&n.text).is_none()
                && !self.shared.globals.contains_key(&n.text)
            {
                inner.vars.insert(n.text.clone(), Val::Int(d.clone()));
                continue;
            }
            let want = self.dim(e, inner)?;
            if want != *d && (want.as_const().is_some() && d.as_const().is_some()) {
                return Err(Error::shape(format!("the input `{input}` has {want} where {} has {d}", TypeText(&found))).into());
            }
        }
        Ok(())
    }
}
