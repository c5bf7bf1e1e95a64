//! Fixing symbolic dimensions of a graph.

use nnc_ir::attrs::Attr;
use nnc_ir::{Builder, Dim, Error, Graph, NodeId, Op, Report, Type, V, Value};
use std::collections::BTreeMap;

/// The graph with `dims` in place of symbols and `shapes` (by input name) in place of its inputs' declared ones. A shape may fix what
/// the model leaves open, not change what it says.
pub fn specialize(graph: Graph, dims: &[(String, i64)], shapes: &[(String, Vec<i64>)]) -> Result<Graph, Report> {
    if dims.is_empty() && shapes.is_empty() {
        return Ok(graph);
    }
    let sizes = sizes(&graph, dims, shapes)?;
    let env = |name: &str| sizes.get(name).map(|v| Dim::Const(*v));
    rebuild(&graph, &env, None)
}

/// The graph with sizes in place of the symbols that `env` knows, wherever they stand.
pub fn fixed(graph: &Graph, env: &dyn Fn(&str) -> Option<Dim>) -> Result<Graph, Report> {
    rebuild(graph, env, None)
}

/// The value of each symbol that is fixed, or everything that is wrong with them.
fn sizes(graph: &Graph, dims: &[(String, i64)], shapes: &[(String, Vec<i64>)]) -> Result<BTreeMap<String, i64>, Report> {
    let mut known: BTreeMap<String, Option<i64>> = BTreeMap::new();
    for id in &graph.inputs {
        let mut see = |s: &std::sync::Arc<str>| {
            known.insert(s.to_string(), None);
        };
        graph.node(*id).types[0].shape.iter().for_each(|d| d.symbols(&mut see));
    }
    let mut errors = vec![];
    let list = |names: Vec<&str>| if names.is_empty() { "none".to_string() } else { names.join(", ") };
    for (name, value) in dims {
        match known.get_mut(name) {
            Some(slot) => *slot = Some(*value),
            None => {
                let symbols = list(known.keys().map(String::as_str).collect());
                errors.push(Error::input(format!("no input has a dimension called `{name}`; symbolic dimensions are: {symbols}")));
            }
        }
    }
    for (name, shape) in shapes {
        let Some(id) = graph.inputs.iter().find(|id| *graph.node(**id).name == **name) else {
            let inputs = list(graph.inputs.iter().map(|id| &*graph.node(*id).name).collect());
            errors.push(Error::input(format!("no input is called `{name}`; inputs are: {inputs}")));
            continue;
        };
        let ty = &graph.node(*id).types[0];
        let given = Type::of(ty.dtype, shape);
        let wrong = |why: String| Error::input(format!("the input `{name}` is {ty}, the shape given for it is {given}{why}"));
        if shape.len() != ty.rank() {
            errors.push(wrong(String::new()));
            continue;
        }
        for (d, value) in ty.shape.iter().zip(shape) {
            match (d.as_const(), d.as_sym().and_then(|s| known.get_mut(&**s))) {
                (Some(c), _) if c != *value => errors.push(wrong(String::new())),
                (_, Some(Some(other))) if *other != *value => errors.push(wrong(format!(", but {d} is {other} already"))),
                (_, Some(slot)) => *slot = Some(*value),
                _ => {}
            }
        }
    }
    errors.dedup();
    if errors.is_empty() { Ok(known.into_iter().filter_map(|(k, v)| Some((k, v?))).collect()) } else { Err(Report(errors)) }
}

type Env<'a> = &'a dyn Fn(&str) -> Option<Dim>;

/// Copies a graph through a builder, which infers every type again. Regions get the input types that their new operands give.
fn rebuild(graph: &Graph, env: Env, inputs: Option<&[Type]>) -> Result<Graph, Report> {
    let b = Builder::new(&*graph.name);
    let mut map: Vec<Vec<V>> = vec![vec![]; graph.id_bound()];
    for (i, id) in graph.inputs.iter().enumerate() {
        let node = graph.node(*id);
        b.at(node.loc.clone());
        let ty = inputs.and_then(|t| t.get(i)).cloned().unwrap_or_else(|| substitute(&node.types[0], env));
        map[id.0 as usize] = vec![b.input(&*node.name, ty)];
    }
    let live = graph.live();
    let skip = |id: NodeId, map: &[Vec<V>]| !live[id.0 as usize] || !map[id.0 as usize].is_empty();
    for id in graph.order() {
        if skip(id, &map) {
            continue;
        }
        let node = graph.node(id);
        b.at(node.loc.clone());
        let x: Vec<V> = node.operands.iter().map(|v| get(&map, *v)).collect();
        let mut regions = vec![];
        for region in &node.regions {
            let types: Vec<Type> = region.inputs.iter().map(|i| substitute(&region.node(*i).types[0], env)).collect();
            regions.push(rebuild(region, env, Some(&types))?);
        }
        map[id.0 as usize] = b.op_all(with_sizes(&node.op, env)?, &x, regions);
        if !node.name.is_empty() {
            map[id.0 as usize][0].named(&node.name);
        }
    }
    for o in &graph.outputs {
        b.output(&*o.name, get(&map, o.value));
    }
    graph.checks.iter().for_each(|v| b.check(get(&map, *v)));
    b.finish()
}

fn get<'g>(map: &[Vec<V<'g>>], v: Value) -> V<'g> {
    map[v.node.0 as usize][v.port as usize]
}

fn substitute(ty: &Type, env: Env) -> Type {
    ty.with_shape(ty.shape.iter().map(|d| d.substitute(env)).collect())
}

/// The operation with sizes in place of symbols in its attributes.
fn with_sizes(op: &Op, env: Env) -> Result<Op, Error> {
    let attrs = op.attrs();
    if !attrs.iter().any(|(_, a)| has_dim(a)) {
        return Ok(op.clone());
    }
    let attrs: Vec<(&str, Attr)> = attrs.into_iter().map(|(k, a)| (k, with_dims(a, env))).collect();
    let get = |name: &str| attrs.iter().find(|(k, _)| *k == name).map(|(_, a)| a.clone());
    Op::parse(op.name(), &get).unwrap_or_else(|| Err(Error::internal(format!("{} is in no table", op.name()))))
}

fn has_dim(a: &Attr) -> bool {
    match a {
        Attr::Dim(_) => true,
        Attr::List(l) | Attr::Call(_, l) => l.iter().any(has_dim),
        _ => false,
    }
}

fn with_dims(a: Attr, env: Env) -> Attr {
    match a {
        Attr::Dim(d) => nnc_ir::attrs::AttrValue::to_attr(&d.substitute(env)),
        Attr::List(l) => Attr::List(l.into_iter().map(|a| with_dims(a, env)).collect()),
        Attr::Call(name, l) => Attr::Call(name, l.into_iter().map(|a| with_dims(a, env)).collect()),
        a => a,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nnc_ir::DType;

    fn model() -> Graph {
        let (n, h) = (Dim::sym("N"), Dim::sym("H"));
        let b = Builder::new("m");
        let x = b.input("x", Type::new(DType::F32, [n.clone(), h.clone(), Dim::Const(3)]));
        let y = x.relu().reshape(vec![n, h * Dim::Const(3)]);
        b.output("y", y);
        b.finish().unwrap()
    }

    fn fixed(dims: &[(&str, i64)], shapes: &[(&str, &[i64])]) -> Result<String, String> {
        let dims: Vec<_> = dims.iter().map(|(n, v)| (n.to_string(), *v)).collect();
        let shapes: Vec<_> = shapes.iter().map(|(n, v)| (n.to_string(), v.to_vec())).collect();
        let g = specialize(model(), &dims, &shapes).map_err(|r| r.to_string())?;
        Ok(format!("{} {}", g.node(g.inputs[0]).types[0], g.ty(g.outputs[0].value)))
    }

    #[test]
    fn symbols_become_sizes_everywhere() {
        assert_eq!(fixed(&[("N", 2)], &[]).unwrap(), "f32[2,H,3] f32[2,3*H]");
        assert_eq!(fixed(&[("N", 2)], &[("x", &[2, 5, 3])]).unwrap(), "f32[2,5,3] f32[2,15]");
        let e = fixed(&[("M", 2)], &[("z", &[1]), ("x", &[1, 2, 4])]).unwrap_err();
        assert!(e.contains("symbolic dimensions are: H, N") && e.contains("inputs are: x") && e.contains("f32[1,2,4]"), "{e}");
        assert!(fixed(&[], &[("x", &[1, 2])]).is_err());
        assert!(fixed(&[("H", 4)], &[("x", &[1, 2, 3])]).unwrap_err().contains("H is 4 already"));
    }
}
