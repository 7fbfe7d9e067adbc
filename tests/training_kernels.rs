//! Training's own kernels against libtorch's operators in f64, values and gradients, on random shapes; the same with every
//! instruction set that the processor has; and bit for bit the same with any number of threads.

use diffusion::torch::training::{convolve, convolves, normalise, normalises};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

/// To this part of the largest value, for f32 and for images in bf16.
const TOLERANCES: [(Kind, f64); 2] = [(Kind::Float, 1e-5), (Kind::BFloat16, 0.02)];

fn random(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind)
}

/// A copy that gradients are asked of.
fn leaf(tensor: &Tensor, kind: Kind) -> Tensor {
    tensor.to_kind(kind).copy().detach().set_requires_grad(true)
}

/// The largest difference, as a part of the largest expected value.
fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let largest = expected.abs().max().double_value(&[]).max(1e-30);
    (found.to_kind(Kind::Double) - expected).abs().max().double_value(&[]) / largest
}

/// Output and gradients of `f` for copies of `inputs` in the given kinds.
fn run(inputs: &[(Tensor, Kind)], weight: &Tensor, f: &dyn Fn(&[Tensor]) -> Tensor) -> Vec<Tensor> {
    let leaves: Vec<Tensor> = inputs.iter().map(|(tensor, kind)| leaf(tensor, *kind)).collect();
    let output = f(&leaves);
    (&output * weight.to_kind(output.kind())).sum(output.kind()).backward();
    let gradients = leaves.iter().map(|leaf| leaf.grad());
    std::iter::once(output.detach()).chain(gradients).collect()
}

/// The largest difference of all results of `ours` in `kind` and `plain` in f64.
fn compare(
    inputs: &[(Tensor, bool)],
    weight: &Tensor,
    kind: Kind,
    ours: &dyn Fn(&[Tensor]) -> Tensor,
    plain: &dyn Fn(&[Tensor]) -> Tensor,
) -> f64 {
    // What is an image is rounded first, so that both see the same.
    let rounded = |image: bool| if image { kind } else { Kind::Float };
    let same: Vec<(Tensor, bool)> =
        inputs.iter().map(|(tensor, image)| (tensor.to_kind(rounded(*image)), *image)).collect();
    let of = |pick: &dyn Fn(bool) -> Kind| -> Vec<(Tensor, Kind)> {
        same.iter().map(|(tensor, image)| (tensor.shallow_clone(), pick(*image))).collect()
    };
    let weight = weight.to_kind(kind);
    let found = run(&of(&rounded), &weight, ours);
    let expected = run(&of(&|_| Kind::Double), &weight, plain);
    found.iter().zip(&expected).map(|(a, b)| difference(a, b)).fold(0.0, f64::max)
}

struct Shape {
    images: i64,
    sides: (i64, i64),
    inputs: i64,
    outputs: i64,
    added: bool,
    residual: bool,
}

impl Shape {
    /// What goes in, and whether it is an image: x, weight, bias, then what is asked for.
    fn inputs(&self) -> Vec<(Tensor, bool)> {
        let Shape { images, sides: (height, width), inputs, outputs, .. } = *self;
        let mut list = vec![
            (random(&[images, inputs, height, width], Kind::Float), true),
            (random(&[outputs, inputs, 3, 3], Kind::Float) * 0.1, false),
            (random(&[outputs], Kind::Float), false),
        ];
        if self.added {
            list.push((random(&[images, outputs], Kind::Float), false));
        }
        if self.residual {
            list.push((random(&[images, outputs, height, width], Kind::Float), true));
        }
        list
    }

    fn ours(&self, t: &[Tensor]) -> Tensor {
        assert!(convolves(&t[0], &t[1], 1, 1));
        let residual = t.get(3 + usize::from(self.added)).filter(|_| self.residual);
        convolve(&t[0], &t[1], &t[2], t.get(3).filter(|_| self.added), residual).unwrap()
    }

    fn plain(&self, t: &[Tensor]) -> Tensor {
        let mut out = t[0].conv2d(&t[1], Some(&t[2]), [1, 1], [1, 1], [1, 1], 1);
        if self.added {
            out += t[3].unsqueeze(-1).unsqueeze(-1);
        }
        match self.residual {
            true => out + &t[3 + usize::from(self.added)],
            false => out,
        }
    }

    fn weight(&self) -> Tensor {
        random(&[self.images, self.outputs, self.sides.0, self.sides.1], Kind::Float)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn convolutions_are_libtorchs(
        (images, height, width) in (1i64..6, 1i64..19, 1i64..19),
        (inputs, outputs) in (1i64..5, 1i64..5),
        (added, residual) in (any::<bool>(), any::<bool>()),
        seed in any::<i64>(),
    ) {
        tch::manual_seed(seed);
        let shape = Shape {
            images, sides: (height, width), inputs: inputs * 32, outputs: outputs * 32, added, residual,
        };
        for (kind, tolerance) in TOLERANCES {
            let found = compare(
                &shape.inputs(), &shape.weight(), kind, &|t| shape.ours(t), &|t| shape.plain(t),
            );
            prop_assert!(found < tolerance, "{kind:?}: {found:e}");
        }
    }

    #[test]
    fn norms_are_libtorchs(
        (images, height, width) in (1i64..6, 1i64..19, 1i64..19),
        (groups, factor) in (1i64..9, 1i64..9),
        (silu, mean) in (any::<bool>(), -3.0f64..3.0),
        seed in any::<i64>(),
    ) {
        let channels = groups * factor * 16;
        let groups = [groups, groups * factor, groups * 2][(seed & 0xff) as usize % 3];
        // A group of one value has nothing to normalise: its gradient is rounding alone.
        prop_assume!(height * width * channels / groups > 8);
        tch::manual_seed(seed);
        let inputs = [
            (random(&[images, channels, height, width], Kind::Float) * 2.0 + mean, true),
            (random(&[channels], Kind::Float), false),
            (random(&[channels], Kind::Float), false),
        ];
        let weight = random(&[images, channels, height, width], Kind::Float);
        let ours = |t: &[Tensor]| {
            assert!(normalises(&t[0], &t[1]));
            normalise(&t[0], &t[1], &t[2], groups, 1e-6, silu).unwrap()
        };
        let plain = |t: &[Tensor]| {
            let out = t[0].group_norm(groups, Some(&t[1]), Some(&t[2]), 1e-6, true);
            if silu { out.silu() } else { out }
        };
        for (kind, tolerance) in TOLERANCES {
            let found = compare(&inputs, &weight, kind, &ours, &plain);
            prop_assert!(found < tolerance, "{kind:?}: {found:e}");
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    tch::manual_seed(1);
    let mut compared = 0;
    for (images, side) in [(1, 20), (3, 4), (33, 8), (9, 21)] {
        let shape =
            Shape { images, sides: (side, side), inputs: 64, outputs: 96, added: true, residual: true };
        for kind in [Kind::Float, Kind::BFloat16] {
            let kinds = |image: bool| if image { kind } else { Kind::Float };
            let inputs: Vec<(Tensor, Kind)> =
                shape.inputs().into_iter().map(|(tensor, image)| (tensor, kinds(image))).collect();
            let weight = shape.weight();
            let norm = |t: &[Tensor]| normalise(&shape.ours(t), &t[2], &t[2], 32, 1e-6, true).unwrap();
            let mut first: Option<Vec<Tensor>> = None;
            for threads in [1, 2, 3, 5] {
                tch::set_num_threads(threads);
                let found = run(&inputs, &weight, &norm);
                let expected = first.get_or_insert_with(|| found.iter().map(Tensor::shallow_clone).collect());
                for (i, (a, b)) in found.iter().zip(expected.iter()).enumerate() {
                    assert!(
                        a.equal(b),
                        "result {i} of {images} images of {side}, {kind:?}, {threads} threads"
                    );
                    compared += 1;
                }
            }
        }
    }
    println!("{compared} tensors compared");
}

/// The other tests of this file in a process that is told to use another instruction set; where the processor lacks it
/// the next best is taken.
#[test]
fn every_instruction_set_passes() {
    if std::env::var_os("DIFFUSION_KERNELS").is_some() {
        return;
    }
    for set in ["portable", "avx2", "avx512"] {
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .env("DIFFUSION_KERNELS", set)
            .env("PROPTEST_CASES", "8")
            .output()
            .unwrap();
        assert!(run.status.success(), "{set}: {}", String::from_utf8_lossy(&run.stdout));
        println!("{set} passes");
    }
}
