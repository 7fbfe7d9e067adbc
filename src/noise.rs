//! Counter-based noise: a value is a pure function of (domain, seed, image, draw, index).
//!
//! A generator with a state would make an image depend on the batch it was computed in, on the images before it
//! and on who else drew. Here nothing has a state: [`Stream`] names one sequence per image, a *draw* of it is
//! one use (a denoising step, a layer's weights), and value `j` of a draw is the same whoever asks, in what
//! order, on which thread and for how many values at once. libtorch's generators are never touched.
//!
//! The bits are Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
//! 2011):
//!
//! ```text
//! key     = [seed low, seed high]
//! counter = [block within the draw, draw, image low, image high ^ domain]     4 words of 32 bits come out
//! ```
//!
//! Normals are Box and Muller's (1958), two from two words, computed in f64 and rounded once to f32. Only
//! additions, multiplications, divisions and square roots are used, each of which IEEE 754 rounds in one way:
//! `ln`, `sin` and `cos` of a platform's libm differ in their last bits between versions and processors, and
//! would make a seed mean another image there. On a device, [`device`] makes the same words bit for bit and the same
//! normals to the last bit of f32 or the one before.

pub mod device;

use std::f64::consts::LN_2;

/// What noise is drawn for. Streams of two domains share nothing, whatever their seeds and images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Starting noise and the noise of stochastic samplers.
    Sample,
    /// The first weights of a network.
    Init,
    /// Timesteps and noise of training steps.
    Train,
    /// Dropout masks.
    Dropout,
}

impl Domain {
    /// Mixed into the top word of the counter, whose low bits hold real images only from 2^32 images on: these
    /// bits are far above.
    fn tag(self) -> u32 {
        match self {
            Domain::Sample => 0,
            Domain::Init => 0x4000_0000,
            Domain::Train => 0x8000_0000,
            Domain::Dropout => 0xC000_0000,
        }
    }
}

/// The noise of one image (or of one thing that draws as an image does): a name, not a state, so it is `Copy`
/// and may be used from any thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    image: [u32; 2],
}

/// Blocks computed side by side. Each step of the arithmetic is a loop over the lanes, which the compiler turns
/// into vector instructions.
const LANES: usize = 16;
/// Words, and so values, of a block.
const WORDS: usize = 4;
/// Values of one pass.
const CHUNK: usize = LANES * WORDS;

impl Stream {
    /// The stream of image number `image` under `seed`.
    pub fn new(domain: Domain, seed: u64, image: u64) -> Stream {
        Stream { key: halves(seed), image: [image as u32, (image >> 32) as u32 ^ domain.tag()] }
    }

    /// Fills `out` with the first values of draw number `draw`, each distributed as N(0, 1).
    ///
    /// Always finite: the largest magnitude is sqrt(2 ln 2^33) = 6.76. A draw has 2^34 values; beyond, it repeats.
    pub fn fill_normal(&self, draw: u32, out: &mut [f32]) {
        self.fill(draw, out, normals);
    }

    /// Fills `out` with the first values of draw number `draw`, each uniform on the 2^24 multiples of 2^-24 in
    /// [0, 1).
    ///
    /// The values come from the same words as the normals of the same draw: use a draw for one of the two.
    pub fn fill_uniform(&self, draw: u32, out: &mut [f32]) {
        self.fill(draw, out, uniforms);
    }

    /// A whole number uniform on `0..n` (0 where `n` is 0), from the first words of draw number `draw`.
    ///
    /// The high half of a 64-bit word times `n` (Lemire 2019, without the rejection): the probabilities of two
    /// numbers differ by a part in 2^64 / n.
    pub fn below(&self, draw: u32, n: u64) -> u64 {
        let [[low], [high], _, _] = philox(self.counter([0], draw), self.key);
        let word = u64::from(high) << 32 | u64::from(low);
        ((u128::from(word) * u128::from(n)) >> 64) as u64
    }

    fn counter<const N: usize>(&self, blocks: [u32; N], draw: u32) -> [[u32; N]; WORDS] {
        [blocks, [draw; N], [self.image[0]; N], [self.image[1]; N]]
    }

    fn fill(&self, draw: u32, out: &mut [f32], shape: impl Fn(&[[u32; LANES]; WORDS], &mut [f32; CHUNK])) {
        let mut values = [0f32; CHUNK];
        let mut first = 0u32;
        for part in out.chunks_mut(CHUNK) {
            let blocks = std::array::from_fn(|lane| first.wrapping_add(lane as u32));
            shape(&philox(self.counter(blocks, draw), self.key), &mut values);
            part.copy_from_slice(&values[..part.len()]);
            first = first.wrapping_add(LANES as u32);
        }
    }
}

fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

/// Philox's numbers.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Philox4x32 with ten rounds, on `N` counters at once.
#[inline(always)]
fn philox<const N: usize>(mut counter: [[u32; N]; WORDS], mut key: [u32; 2]) -> [[u32; N]; WORDS] {
    for _ in 0..ROUNDS {
        let [a, b, c, d] = &mut counter;
        for lane in 0..N {
            let [p_low, p_high] = halves(u64::from(MULTIPLIERS[0]) * u64::from(a[lane]));
            let [q_low, q_high] = halves(u64::from(MULTIPLIERS[1]) * u64::from(c[lane]));
            a[lane] = q_high ^ b[lane] ^ key[0];
            c[lane] = p_high ^ d[lane] ^ key[1];
            b[lane] = q_low;
            d[lane] = p_low;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// Words 0 and 1 of a block make its values 0 and 1, words 2 and 3 the values 2 and 3.
#[inline(always)]
fn normals(words: &[[u32; LANES]; WORDS], out: &mut [f32; CHUNK]) {
    let [a, b, c, d] = words;
    for (first, radii, angles) in [(0, a, b), (2, c, d)] {
        let mut pair = ([0f32; LANES], [0f32; LANES]);
        for lane in 0..LANES {
            (pair.0[lane], pair.1[lane]) = box_muller(radii[lane], angles[lane]);
        }
        for lane in 0..LANES {
            out[WORDS * lane + first] = pair.0[lane];
            out[WORDS * lane + first + 1] = pair.1[lane];
        }
    }
}

#[inline(always)]
fn uniforms(words: &[[u32; LANES]; WORDS], out: &mut [f32; CHUNK]) {
    for lane in 0..LANES {
        for (word, values) in words.iter().enumerate() {
            out[WORDS * lane + word] = (values[lane] >> 8) as f32 * (1.0 / (1 << 24) as f32);
        }
    }
}

/// Two independent normals: a radius sqrt(-2 ln u) and a uniform direction.
///
/// `u` is the middle of one of 2^32 equal intervals of (0, 1), so it is never 0 or 1. The direction is an angle in
/// (-pi/2, pi/2) from 31 bits, mirrored by the top one: the half circle needs short polynomials and no choice of
/// quadrant. Against exact arithmetic the error before the rounding to f32 is below 1e-11 (tested).
#[inline(always)]
fn box_muller(radius: u32, angle: u32) -> (f32, f32) {
    let u = (unsigned(radius) + 0.5) * (1.0 / (1u64 << 32) as f64);
    let r = (-2.0 * ln(u)).sqrt();
    // The low 31 bits as i32 are never negative, and that conversion is one instruction.
    let half_turns = (f64::from((angle & 0x7FFF_FFFF) as i32) + 0.5) * (1.0 / (1u64 << 31) as f64) - 0.5;
    let (sin, cos) = sin_cos(half_turns * std::f64::consts::PI);
    let mirror = u64::from(angle >> 31) << 63;
    let x = f64::from_bits((r * cos).to_bits() ^ mirror);
    (x as f32, (r * sin) as f32)
}

/// `word as f64` through the signed conversion, since x86-64 below AVX-512 has no unsigned one to vectorise with.
#[inline(always)]
fn unsigned(word: u32) -> f64 {
    f64::from((word ^ 0x8000_0000) as i32) + 2_147_483_648.0
}

/// The natural logarithm of a normal positive number, to 1e-13 of its value.
///
/// u = 2^k m with m in [sqrt(1/2), sqrt(2)), so k is 0 next to u = 1 and nothing cancels there; ln m = 2 artanh(s)
/// with s = (m - 1) / (m + 1), |s| < 0.172, by its Taylor series.
#[inline(always)]
fn ln(u: f64) -> f64 {
    const SQRT_HALF: u64 = std::f64::consts::FRAC_1_SQRT_2.to_bits();
    const ONE: u64 = 1f64.to_bits();
    const TWO_52: u64 = 0x4330_0000_0000_0000;
    let biased = (u.to_bits() + (ONE - SQRT_HALF)) >> 52;
    // An integer below 2^52 put into the mantissa of 2^52: the conversion that every vector unit has.
    let k = f64::from_bits(biased | TWO_52) - (4_503_599_627_370_496.0 + 1023.0);
    let m = f64::from_bits(u.to_bits() + ONE - (biased << 52));
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let tail = horner(z, [1.0 / 15.0, 1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0]);
    k * LN_2 + 2.0 * (s + s * z * tail)
}

/// Sine and cosine of an angle in [-pi/2, pi/2], to 1e-11, by their Taylor series.
#[inline(always)]
fn sin_cos(x: f64) -> (f64, f64) {
    const fn factorial(n: u64) -> f64 {
        if n < 2 {
            1.0
        } else {
            n as f64 * factorial(n - 1)
        }
    }
    const SIN: [f64; 7] = [
        -1.0 / factorial(15),
        1.0 / factorial(13),
        -1.0 / factorial(11),
        1.0 / factorial(9),
        -1.0 / factorial(7),
        1.0 / factorial(5),
        -1.0 / factorial(3),
    ];
    const COS: [f64; 8] = [
        1.0 / factorial(16),
        -1.0 / factorial(14),
        1.0 / factorial(12),
        -1.0 / factorial(10),
        1.0 / factorial(8),
        -1.0 / factorial(6),
        1.0 / factorial(4),
        -1.0 / factorial(2),
    ];
    let z = x * x;
    (x + x * z * horner(z, SIN), 1.0 + z * horner(z, COS))
}

/// The polynomial in `z` whose coefficients are given from the highest power down.
#[inline(always)]
fn horner<const N: usize>(z: f64, coefficients: [f64; N]) -> f64 {
    let mut sum = coefficients[0];
    for coefficient in &coefficients[1..] {
        sum = sum * z + coefficient;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random123's published known answers (kat_vectors: philox4x32 10).
    #[test]
    fn philox_known_answers() {
        let one = |counter: [u32; 4], key| philox(counter.map(|word| [word]), key).map(|[word]| word);
        assert_eq!(one([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(one([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            one([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    /// The sequence is part of what a seed means: a change here changes every image that anyone ever sampled.
    /// The values come from a second implementation, in Python with its own `math.log`, `sin` and `cos`.
    #[test]
    fn golden_values() {
        let mut normals = [0f32; 6];
        Stream::new(Domain::Sample, 42, 7).fill_normal(3, &mut normals);
        assert_eq!(normals.map(f32::to_bits), GOLDEN_NORMALS);
        let mut uniforms = [0f32; 6];
        Stream::new(Domain::Init, u64::MAX, 1 << 40).fill_uniform(u32::MAX, &mut uniforms);
        assert_eq!(uniforms.map(|value| (value * 16_777_216.0) as u32), GOLDEN_UNIFORMS);
        assert_eq!(Stream::new(Domain::Train, 1, 2).below(3, 1000), GOLDEN_BELOW);
    }

    #[test]
    fn a_value_depends_on_its_index_alone() {
        let stream = Stream::new(Domain::Sample, 5, 6);
        let mut whole = [0f32; 1000];
        stream.fill_normal(0, &mut whole);
        for length in (0..200).chain([999, 1000]) {
            let mut prefix = vec![f32::NAN; length];
            stream.fill_normal(0, &mut prefix);
            assert!(prefix.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits()), "length {length}");
        }
    }

    /// Value by value against one block at a time, so that the lanes are known to be only a matter of speed.
    #[test]
    fn lanes_are_blocks() {
        let stream = Stream::new(Domain::Dropout, 0x0123_4567_89ab_cdef, 99);
        let mut values = [0f32; 4 * CHUNK];
        stream.fill_normal(11, &mut values);
        for (block, values) in values.chunks(WORDS).enumerate() {
            let [[a], [b], [c], [d]] = philox(stream.counter([block as u32], 11), stream.key);
            let ((v0, v1), (v2, v3)) = (box_muller(a, b), box_muller(c, d));
            assert_eq!(values, [v0, v1, v2, v3]);
        }
    }

    #[test]
    fn names_that_differ_share_nothing() {
        let mut seen = std::collections::HashSet::new();
        let mut draws = 0;
        for domain in [Domain::Sample, Domain::Init, Domain::Train, Domain::Dropout] {
            for seed in [0, 1, 1 << 32, u64::MAX] {
                for image in [0, 1, 1 << 32, 1 << 50] {
                    for draw in [0, 1, u32::MAX] {
                        let mut values = [0f32; 4];
                        Stream::new(domain, seed, image).fill_normal(draw, &mut values);
                        seen.insert(values.map(f32::to_bits));
                        draws += 1;
                    }
                }
            }
        }
        assert_eq!(seen.len(), draws);
    }

    /// Independence across neighbours in each direction of the counter: correlation of 2^18 pairs is below 5 /
    /// 2^9.
    #[test]
    fn neighbours_are_uncorrelated() {
        let values = |domain, seed, image, draw| {
            let mut values = vec![0f32; 1 << 18];
            Stream::new(domain, seed, image).fill_normal(draw, &mut values);
            values
        };
        let base = values(Domain::Sample, 1, 1, 1);
        let others = [
            values(Domain::Sample, 1, 1, 2),
            values(Domain::Sample, 1, 2, 1),
            values(Domain::Sample, 2, 1, 1),
            values(Domain::Init, 1, 1, 1),
            [&base[1..], &base[..1]].concat(),
            [&base[4..], &base[..4]].concat(),
        ];
        for (index, other) in others.iter().enumerate() {
            let product = |f: fn(f64) -> f64| -> f64 {
                let sum: f64 = base.iter().zip(other).map(|(&a, &b)| f(f64::from(a)) * f(f64::from(b))).sum();
                sum / base.len() as f64
            };
            assert!(product(|x| x).abs() < 0.01, "neighbour {index}");
            // Of the squares too, which a shared radius would give away (their standard deviation is 2).
            assert!(product(|x| x * x - 1.0).abs() < 0.02, "neighbour {index}");
        }
    }

    #[test]
    fn normals_have_the_normal_distribution() {
        let count = 1 << 22;
        let mut values = vec![0f32; count];
        Stream::new(Domain::Sample, 2024, 0).fill_normal(0, &mut values);
        let moment =
            |power: i32| values.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / count as f64;
        // Five standard errors of each: sqrt(1, 2, 15, 96, 10395 - 225) / 2^11.
        for (power, wanted, error) in
            [(1, 0.0, 1.0), (2, 1.0, 1.42), (3, 0.0, 3.88), (4, 3.0, 9.8), (6, 15.0, 101.0)]
        {
            assert!(
                (moment(power) - wanted).abs() < 5.0 * error / 2048.0,
                "moment {power} is {}",
                moment(power)
            );
        }
        // Kolmogorov and Smirnov: sup |F_n - F| < 1.95 / sqrt(n) in 999 of 1000 cases.
        values.sort_by(f32::total_cmp);
        let distance = values
            .iter()
            .enumerate()
            .map(|(rank, &x)| (normal_cdf(f64::from(x)) - (rank as f64 + 0.5) / count as f64).abs())
            .fold(0.0, f64::max);
        assert!(distance < 1.95 / 2048.0, "distance {distance}");
    }

    /// Phi by its series around 0 (Marsaglia 2004).
    fn normal_cdf(x: f64) -> f64 {
        let (mut sum, mut term, mut n) = (x, x, 1.0);
        while term.abs() > 1e-17 {
            n += 2.0;
            term *= x * x / n;
            sum += term;
        }
        0.5 + sum * (-0.5 * x * x - 0.918_938_533_204_672_8).exp()
    }

    #[test]
    fn extreme_words_stay_finite() {
        let edges = [0, 1, 2, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, u32::MAX - 1, u32::MAX];
        let mut largest = 0f32;
        for radius in edges {
            for angle in edges {
                let (x, y) = box_muller(radius, angle);
                assert!(x.is_finite() && y.is_finite());
                largest = largest.max(x.abs()).max(y.abs());
            }
        }
        assert!((largest - 6.763_9).abs() < 1e-3, "{largest}");
    }

    /// The polynomials against the platform's f64 functions.
    #[test]
    fn elementary_functions_are_accurate() {
        let (mut worst_ln, mut worst_sin, mut worst_cos, mut worst) = (0f64, 0f64, 0f64, 0f64);
        let mut radius = 1u32;
        for step in 0..2_000_000u32 {
            // Uniform words, and every tenth time one next to either end.
            radius = radius.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let word = match step % 20 {
                0 => radius >> (step / 20 % 32),
                10 => !(radius >> (step / 20 % 32)),
                _ => radius,
            };
            let u = (f64::from(word) + 0.5) / 4_294_967_296.0;
            worst_ln = worst_ln.max((ln(u) / u.ln() - 1.0).abs());
            let x = (f64::from(word) / 4_294_967_296.0 - 0.5) * std::f64::consts::PI;
            let (sin, cos) = sin_cos(x);
            worst_sin = worst_sin.max((sin - x.sin()).abs());
            worst_cos = worst_cos.max((cos - x.cos()).abs());
            let angle = radius.rotate_left(13);
            let r = (-2.0 * u.ln()).sqrt();
            let turn =
                std::f64::consts::PI * ((f64::from(angle & 0x7fff_ffff) + 0.5) / 2_147_483_648.0 - 0.5);
            let (got_x, got_y) = box_muller(word, angle);
            let sign = if angle >> 31 == 1 { -1.0 } else { 1.0 };
            for (got, wanted) in [(got_x, sign * r * turn.cos()), (got_y, r * turn.sin())] {
                // What is left after half a unit in the last place of f32.
                let rounding = f64::from(f32::EPSILON) / 2.0 * wanted.abs();
                worst = worst.max((f64::from(got) - wanted).abs() - rounding);
            }
        }
        println!("ln {worst_ln:e} (relative), sin {worst_sin:e}, cos {worst_cos:e}, normal {worst:e}");
        assert!(worst_ln < 1e-13, "ln is off by {worst_ln:e}");
        assert!(worst_sin < 1e-11 && worst_cos < 1e-11, "sin, cos are off by {worst_sin:e}, {worst_cos:e}");
        assert!(worst < 1e-11, "normals are off by {worst:e}");
    }

    #[test]
    fn uniforms_fill_the_unit_interval() {
        let mut values = vec![0f32; 1 << 20];
        Stream::new(Domain::Train, 3, 0).fill_uniform(0, &mut values);
        assert!(values.iter().all(|value| (0.0..1.0).contains(value)));
        let mut cells = [0f64; 64];
        values.iter().for_each(|value| cells[(value * 64.0) as usize] += 1.0);
        let expected = values.len() as f64 / 64.0;
        let chi_squared: f64 = cells.iter().map(|cell| (cell - expected).powi(2) / expected).sum();
        // 63 degrees of freedom: 103 is exceeded once in 1000 times.
        assert!(chi_squared < 103.0, "{chi_squared}");
    }

    #[test]
    fn below_is_even_and_in_range() {
        let stream = Stream::new(Domain::Train, 9, 0);
        assert_eq!([stream.below(0, 0), stream.below(0, 1)], [0, 0]);
        let mut cells = [0f64; 10];
        (0..100_000).for_each(|draw| cells[stream.below(draw, 10) as usize] += 1.0);
        let chi_squared: f64 = cells.iter().map(|cell| (cell - 10_000.0).powi(2) / 10_000.0).sum();
        assert!(chi_squared < 27.9, "{chi_squared}");
        assert!((0..1000).all(|draw| stream.below(draw, u64::MAX) < u64::MAX));
    }

    const GOLDEN_NORMALS: [u32; 6] = [3213728844, 3217237633, 3198571371, 1062322818, 1057249472, 1058873774];
    const GOLDEN_UNIFORMS: [u32; 6] = [6346338, 15988205, 14790130, 2741358, 4992145, 6812213];
    const GOLDEN_BELOW: u64 = 324;
}
