//! The `.nn` language from outside: what texts mean, that printed graphs read back, what errors say.

use nnc_frontend::nn::{Limits, parse, parse_model};
use nnc_ir::error::Code;
use nnc_ir::eval::{Env, run};
use nnc_ir::ops::control::Scan;
use nnc_ir::{Graph, Op, Report, Tensor};

fn graph(text: &str) -> Graph {
    parse(text, "t.nn").unwrap_or_else(|r| panic!("{r}\n{text}"))
}

fn errors(text: &str) -> Report {
    match parse(text, "t.nn") {
        Ok(g) => panic!("accepted:\n{text}\n{g}"),
        Err(r) => r,
    }
}

/// Printing, reading and printing again gives the same text.
fn round_trip(g: &Graph) {
    let text = nnc_ir::print::full(g).to_string();
    let again = parse(&text, "printed.nn").unwrap_or_else(|r| panic!("{r}\n{text}"));
    assert_eq!(nnc_ir::print::full(&again).to_string(), text);
    assert_eq!(again.len(), g.len());
}

#[test]
fn a_plain_module() {
    let g = graph("module f(x: f32[4,8], w: f32[8,16], b: f32[16]) -> (f32[4,16], f32[4,16]) {\n  y = matmul(x, w)\n  return relu(y + b), y\n}\n");
    let text = "module f(x: f32[4,8], w: f32[8,16], b: f32[16]) -> (output0: f32[4,16], y: f32[4,16]) {
  y: f32[4,16] = matmul(x, w)
  _0: f32[4,16] = add(y, b)
  _1: f32[4,16] = relu(_0)
  return _1, y
}
";
    assert_eq!(g.to_string(), text);
    round_trip(&g);
}

#[test]
fn symbols_sizes_and_words() {
    let g = graph(
        "module f(x: f32[N,2*N+1,`odd name`]) {
           y = reshape(x, shape=[N*(2*N+1), `odd name`])
           m = reduce(y, kind=sum, axes=[0], keepdims=true)
           n = non_zero(m, count=k)
           g = gather(y, cast(n, to=i64), axis=0)
           return reshape(g, shape=[2*k, `odd name`]), activation(m, act=clip(-1, inf)) ** 2, x[0][-1]
         }",
    );
    let text = g.to_string();
    assert!(text.contains("gather(y, "), "{text}");
    assert!(text.contains("act=clip(-1.0, inf)"), "{text}");
    assert!(text.contains("[2,k,`odd name`]"), "{text}");
    round_trip(&g);
}

#[test]
fn regions() {
    let g = graph(
        "module f(c: bool[], n: i64[], x: f32[2]) {
           y = if(c, x) do (x: f32[2]) { return x + 1 } do (z: f32[2]) { return z * 2 }
           last, all = loop(n, c, y, x, carried=1, trips=t) do (i: i64[], a: f32[2], x: f32[2]) {
             c = i < 5
             b = a + x
             return c, b, b
           }
           return last, all
         }",
    );
    assert!(g.to_string().contains("-> (last: f32[2], all: f32[t,2])"), "{g}");
    round_trip(&g);
}

#[test]
fn literals_keep_their_bits() {
    let g = graph(
        "module f() {
           a = f32[2,2] [[0.1, -1.5e-40], [inf, -inf]]
           b = f16[3] [0.1, 65504, 6e-8]
           c = bf16[] 3.1415926
           d = u64[2] [18446744073709551615, 0]
           e = bool[2] [true, false]
           s = f64[1000,1000] 0.1
           z = i8[0] []
           return a, b, c, d, e, s, z
         }",
    );
    round_trip(&g);
    assert!(g.to_string().contains("s = f64[1000,1000] 0.1"));
    let a = g.constant(g.outputs[0].value).unwrap();
    assert_eq!(a.to_vec::<f32>().unwrap(), [0.1, -1.5e-40, f32::INFINITY, f32::NEG_INFINITY]);
}

#[test]
fn an_elided_constant_does_not_read_back() {
    let g = graph("module f() {\n  a = i64[17] [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]\n  return a\n}");
    let r = errors(&g.to_string());
    assert!(r.0[0].message().contains("were not printed"), "{r}");
    round_trip(&g);
}

/// Every operation of the table, as printed, is a call that means the same.
#[test]
fn every_operation_round_trips() {
    let examples = nnc_ir::examples::examples();
    for e in &examples {
        round_trip(&e.graph().unwrap_or_else(|r| panic!("{}: {r}", e.name)));
    }
    let names: std::collections::BTreeSet<&str> = examples.iter().map(|e| e.op.name()).collect();
    // Of the operations of the host, and of gradients, other tests hold the text.
    let others = ["const", "gradient", "image_decode", "string_concat", "string_split", "string_normalize", "string_rank", "regex_match"];
    let missing: Vec<&str> = nnc_ir::Op::names().into_iter().filter(|n| !names.contains(n) && !others.contains(n)).collect();
    assert_eq!(missing, Vec::<&str>::new(), "operations without an example");
}

const CONV: &str = "module Conv(c, k, stride=1, pad=0, init=he, bias=zeros) (x) {
  w = param [c, x.shape[1], k, k] ~ init
  b = param [c] ~ bias
  return conv(x, w, strides=[stride,stride], pads=[pad,pad,pad,pad]) + reshape(b, shape=[c,1,1])
}
";

#[test]
fn instances_share_and_loops_do_not() {
    let text = format!(
        "{CONV}seed = 7
module net(x: f32[N,3,8,8]) {{
  stem = Conv(4, 3, pad=1)
  h = stem(x)
  same = Conv(4, 3, pad=1, name=\"body\")
  h = same(same(h))
  for i in 0..3 {{ h = tanh(Conv(4, 3, pad=1)(h)) }}
  if h.shape[1] == 4 && !(h.rank < 4) {{ h = relu(h) }} else {{ h = exp(h) }}
  return h
}}"
    );
    let (g, parameters) = parse_model(&text, "t.nn", Limits::default()).unwrap();
    let paths: Vec<&str> = parameters.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(paths, ["stem.w", "stem.b", "body.w", "body.b", "i0.Conv.w", "i0.Conv.b", "i1.Conv.w", "i1.Conv.b", "i2.Conv.w", "i2.Conv.b"]);
    assert_eq!(g.to_string().matches("conv(").count(), 6, "{g}");
    round_trip(&g);
    // The same text gives the same bytes; another seed others.
    let w = |text: &str| {
        let (g, p) = parse_model(text, "t.nn", Limits::default()).unwrap();
        g.constant(p[0].value).unwrap().bytes()
    };
    assert_eq!(w(&text), w(&text));
    assert_ne!(w(&text), w(&text.replace("seed = 7", "seed = 8")));
}

#[test]
fn ten_thousand_layers() {
    let text = format!(
        "{CONV}module deep(x: f32[N,4,7,7]) {{
  h = x
  for i in 0..10000 {{ h = tanh(Conv(4, 3, pad=1, init=delta_orthogonal(1.02))(h)) }}
  return h
}}"
    );
    let g = graph(&text);
    assert!(g.len() > 50_000);
    let printed = g.to_string();
    assert!(printed.lines().count() > 50_000);
}

#[test]
fn every_independent_problem_is_in_the_report() {
    let r = errors(
        "module f(x: f32[4,8], w: f32[9,16]) {
  a = matmul(x, w)
  b = matmull(x, x)
  c = relu(y)
  d = a + b + c
  e = softmax(x, axes=1)
  return d, e
}",
    );
    let codes: Vec<Code> = r.0.iter().map(|e| e.code()).collect();
    assert_eq!(codes[..3], [Code::Shape, Code::Unsupported, Code::Name], "{r}");
    assert_eq!(r.0.len(), 4, "{r}");
    assert!(r.0[0].to_string().contains("matmul: contracted dims differ: 8 and 9"), "{r}");
    assert!(r.0[0].to_string().contains("t.nn:2:"), "{r}");
    assert!(r.0[1].to_string().contains("did you mean `matmul`?"), "{r}");
}

#[test]
fn syntax_errors_come_together() {
    let r = errors("module f(x: f32[4]) {\n  a = (x + \n  b = x $ 2\n  c = 3x\n  return x\n}\nmodule g(x f32[4]) { return x }\n");
    assert!(r.0.len() >= 3, "{r}");
    assert!(r.0.iter().all(|e| e.code() == Code::Syntax), "{r}");
    assert!(errors("train lenet on net { }").0[0].message().contains("expected `on`"));
    assert!(errors("plan { }").0[0].message().contains("not supported yet"));
}

#[test]
fn hostile_texts_meet_limits() {
    let deep = |open: &str, close: &str| format!("module f(x: f32[1]) {{ y = {}x{}\nreturn y }}", open.repeat(5000), close.repeat(5000));
    let cases = [
        deep("(", ")"),
        deep("relu(", ")"),
        deep("-", ""),
        deep("[", "]"),
        "module f(x: f32[1]) { w = param [1000000, 1000000] ~ he\nreturn w }".into(),
        "module f(x: f32[1]) { w = param [9999999999999, 9999999999999, 99999999999] ~ he\nreturn w }".into(),
        "module f(x: f32[1]) { for i in 0..99999999999999 { y = 1 }\nreturn x }".into(),
        "module f(x: f32[1]) { l = [1]\nfor i in 0..60 { l = l + l }\nreturn x }".into(),
        "module f(x: f32[N,M]) { n = N + M\nfor i in 0..60 { n = n * n }\nreturn x }".into(),
        "module f(x: f32[N,M]) { n = N\nfor i in 0..6000 { n = (n + 1) / 2 }\nreturn x }".into(),
        "module G(n) (x) { return G(n + 1)(x) }\nmodule f(x: f32[N]) { return G(0)(x) }".into(),
        "module f(x: f32[1]) { n = 9223372036854775807 + 1\nreturn x }".into(),
        "module f(x: f32[1]) { n = 1 / 0\nreturn x }".into(),
        "module f(x: f32[2,1,8,8], w: f32[1,1,3,3]) { y = conv(x, w, strides=[0,0], pads=[9223372036854775807,1,1,1])\nreturn y }".into(),
    ];
    for text in cases {
        let r = errors(&text);
        assert!(!r.0.is_empty() && r.0.iter().all(|e| e.code() != Code::Internal), "{r}");
    }
    // Long is not deep.
    let long = format!("module f(x: f32[1]) {{ return x{} }}", " + x".repeat(20_000));
    assert_eq!(graph(&long).len(), 20_001);
}

fn example(name: &str) -> (Graph, usize) {
    let path = format!("{}/../examples/{name}.nn", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(nnc_frontend::nn::format(&text, &path).unwrap(), text, "{name} is formatted");
    let (g, parameters) = parse_model(&text, &path, Limits::default()).unwrap_or_else(|r| panic!("{r}"));
    let trained = parameters.iter().filter(|p| p.trained).map(|p| g.constant(p.value).unwrap().elems()).sum();
    (g, trained)
}

/// The networks are the published ones: their numbers of parameters are those of torchvision's models and of the papers.
#[test]
fn examples_have_the_published_sizes() {
    for (name, parameters, convolutions) in [
        ("mlp", 535_818, 0),
        ("lenet5", 61_706, 2),
        ("resnet18", 11_689_512, 20),
        ("resnet50", 25_557_032, 53),
        ("mobilenet_v2", 3_504_872, 52),
        ("vgg16", 138_357_544, 13),
        ("deep", 2 * 16 + 16 * 144 * 1001 + 16 * 1000 + 9 * 16 + 170, 1002),
    ] {
        let (g, n) = example(name);
        assert_eq!(n, parameters, "{name}");
        let printed = g.to_string();
        assert_eq!(printed.matches("= conv(").count(), convolutions, "{name}");
        assert!(printed.contains("-> (y: f32[N,10"), "{name}: {}", printed.lines().next().unwrap());
    }
}

#[test]
fn strings_are_constants_too() {
    let b = nnc_ir::Builder::new("m");
    let t = nnc_ir::Tensor::text(&[2], vec!["a \"b\"".into(), "1".into()]).unwrap();
    b.output("y", b.constant(t.clone()));
    let graph = b.finish().unwrap();
    let printed = graph.to_string();
    let again = nnc_frontend::nn::parse(&printed, "m.nn").unwrap_or_else(|e| panic!("{e}\n{printed}"));
    assert_eq!(again.constant(again.outputs[0].value), Some(&t), "{printed}");
}

/// The value of the text's model at an input of all `x`, with its parameters' values by path.
fn value(text: &str, shape: &[usize], x: f32) -> (Vec<f64>, Vec<(String, Tensor)>) {
    let (graph, parameters) = parse_model(text, "t.nn", Limits::default()).unwrap_or_else(|r| panic!("{r}\n{text}"));
    let values = parameters.iter().map(|p| (p.path.clone(), graph.constant(p.value).unwrap().clone())).collect();
    let n = shape.iter().product();
    let y = run(&graph, &[Tensor::new(shape, &vec![x; n])], &Env::default()).unwrap();
    (y[0].to_f64s(), values)
}

#[test]
fn a_repeated_body_is_one_region() {
    let net = |layers: u32| {
        format!(
            "seed = 3
             module Layer(n) (x) {{
               w = param [n, x.shape[1]] ~ lecun
               b = param [n] ~ normal(0.1)
               return tanh(gemm(x, w, b, transB=1))
             }}
             module f(x: f32[2,4]) {{
               scale = param [1] ~ constant(2)
               shared = Layer(4)
               h = x + 0
               first = x * scale
               repeat {layers} {{ h = Layer(4)(shared(h)) * scale + first }}
               return h
             }}"
        )
    };
    let deep = graph(&net(10_000));
    assert_eq!(deep.len(), graph(&net(2)).len());
    let scan = deep.ids().map(|id| deep.node(id)).find(|n| matches!(n.op, Op::Scan(_))).unwrap();
    // One state, two slices, captured: first, and the shared instance's two; the small constant is copied.
    assert_eq!(scan.op, Op::Scan(Scan { states: 1, scanned: 2, reverse: false }));
    assert_eq!(scan.operands.len(), 6);
    round_trip(&deep);

    // The same net with its layers written out.
    let (rolled, parameters) = value(&net(3), &[2, 4], 0.3);
    let stack = |name: &str| parameters.iter().find(|(p, _)| p == &format!("repeat.Layer.{name}")).unwrap().1.to_f64s();
    let (w, b) = (stack("w"), stack("b"));
    let literal = |x: &[f64]| x.iter().map(|x| format!("{x:?}")).collect::<Vec<_>>().join(", ");
    let layers: String = (0..3)
        .map(|i| {
            let (w, b) = (literal(&w[16 * i..][..16]), literal(&b[4 * i..][..4]));
            format!("h = tanh(gemm(shared(h), f32[4,4] [{w}], f32[4] [{b}], transB=1)) * scale + first\n")
        })
        .collect();
    let text = net(3).replace("repeat 3 { h = Layer(4)(shared(h)) * scale + first }", &layers);
    assert!(text.contains("gemm(shared(h), f32"), "{text}");
    assert_eq!(value(&text, &[2, 4], 0.3).0, rolled);
    // Each slice has a beginning of its own.
    assert_ne!(w[..16], w[16..32]);
}

#[test]
fn repetitions_nest_and_draw_their_own_numbers() {
    let text = "module f(x: f32[8]) {
      h = x
      seen = x * 0
      repeat 2 {
        repeat 3 {
          w = param [8] ~ uniform(1)
          h = h + w
        }
        seen = seen + random_uniform_like(x)
      }
      return h, seen
    }";
    let (y, parameters) = value(text, &[8], 0.5);
    let w = &parameters[0];
    assert_eq!((w.0.as_str(), w.1.shape()), ("repeat.repeat.w", &[2, 3, 8][..]));
    let all = w.1.to_f64s();
    let sum = |i: usize| (0..6).map(|k| all[8 * k + i]).sum::<f64>() + 0.5;
    (0..8).for_each(|i| assert!((y[i] - sum(i)).abs() < 1e-5, "{} {}", y[i], sum(i)));
    // The draws of two repetitions are not twice the same.
    let g = graph(text);
    let once = run(&g, &[Tensor::new(&[8], &[0.5f32; 8])], &Env::default()).unwrap()[1].to_f64s();
    let twice = text.replace("repeat 2", "repeat 1");
    let single = run(&graph(&twice), &[Tensor::new(&[8], &[0.5f32; 8])], &Env::default()).unwrap()[1].to_f64s();
    assert!(once.iter().zip(&single).any(|(a, b)| (a - 2.0 * b).abs() > 1e-3), "{once:?} {single:?}");
}

#[test]
fn what_cannot_be_repeated_is_told() {
    for (body, what) in [
        ("y = h + 1", "nothing goes from one repetition"),
        ("h = concat(h, h, axis=0)", "its type must stay"),
        ("h = 3", "a tensor before a repetition and the integer 3"),
        ("h = h + 1\n return h", "cannot return"),
        ("n = n + 1\n h = h + n", "only tensors go from one repetition"),
        ("h = h + nothing", "`nothing` is not defined"),
    ] {
        let r = errors(&format!("module f(x: f32[4]) {{\n h = x + 0\n n = 1\n repeat 3 {{ {body} }}\n return h\n}}"));
        assert_eq!(r.0.len(), 1, "{r}");
        assert!(r.to_string().contains(what), "{body}: {r}");
    }
    let r = errors("module f(x: f32[4]) {\n h = x\n repeat -1 { h = h + 1 }\n return h\n}");
    assert!(r.to_string().contains("-1 is no count"), "{r}");
    assert_eq!(graph("module f(x: f32[4]) {\n h = x + 0\n repeat 0 { h = h + 1 }\n return h\n}").len(), 3);
}

#[test]
fn repetitions_are_bounded() {
    let net = |n: &str, body: &str| format!("module f(x: f32[4]) {{\n h = x + 0\n repeat {n} {{ {body} }}\n return h\n}}");
    for (n, body) in [
        ("1000000000000000", "w = param [0] ~ normal(1)\n h = h + reduce_sum(w, keepdims=0)"),
        ("2147483647", "repeat 2147483647 { w = param [0] ~ he\n h = h + reduce_sum(w, keepdims=0) }"),
        ("1000000000000000", "h = h + 1"),
        ("9223372036854775807", "w = param [4] ~ normal(1)\n h = h + w"),
    ] {
        let r = errors(&net(n, body));
        assert!(r.0.iter().all(|e| e.code() == Code::Limit || e.code() == Code::Shape), "{r}");
        assert!(r.to_string().contains("t.nn:3"), "{r}");
    }
    let many: String = (0..4000).map(|i| format!("v{i} = {i}\n")).collect();
    let r = errors(&format!("module f(x: f32[4]) {{\n h = x\n {many} for i in 0..1000 {{ repeat 2 {{ h = h + 1 }} }}\n return h\n}}"));
    assert_eq!(r.0[0].code(), Code::Limit, "{r}");
}

#[test]
fn no_two_parameters_have_one_path() {
    let (_, p) = parse_model(
        "module f(x: f32[4]) {\n v_2 = param [4] ~ ones\n v = param [4] ~ zeros\n v = v + param [4] ~ ones\n v = param [4] ~ zeros\n return x + v + v_2\n}",
        "t.nn",
        Limits::default(),
    )
    .unwrap();
    let paths: Vec<&str> = p.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(paths, ["v_2", "v", "param", "v_3"]);
    let layer = "module S(n) (x) {\n w = param [n] ~ ones\n return x + w\n}\n";
    let r = errors(&format!("{layer}module f(x: f32[4]) {{\n s = S(4, name=\"repeat.S\")\n return s(x)\n}}"));
    assert!(r.to_string().contains("has a point"), "{r}");
    // Made before, so shared, whatever it is called.
    let text = format!(
        "{layer}module f(x: f32[4]) {{\n repeat_2 = S(4)\n h = x\n repeat 2 {{ h = S(4)(h) }}\n repeat 2 {{ h = repeat_2(h) }}\n return h\n}}"
    );
    let (_, p) = parse_model(&text, "t.nn", Limits::default()).unwrap();
    let shapes: Vec<_> = p.iter().map(|p| (p.path.as_str(), p.initial.is_some())).collect();
    assert_eq!(shapes, [("repeat.S.w", false), ("repeat_2.w", false)]);
}
