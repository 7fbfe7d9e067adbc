//! The noise of [`super`] made where it is needed: the same words bit for bit, in a tensor library's operations.
//!
//! libtorch has no unsigned 32-bit arithmetic on devices, so that a word is an int64 in 0..2^32: the product of two
//! wraps in the 64 bits as it does unsigned, and its upper half is masked after the shift, which copies the sign.
//! ln, sin and cos are libtorch's in f64, which round otherwise than those of [`super`] in the last bits of f64:
//! after the rounding to f32 a normal is the same or its neighbour (within 1e-6, tested).

use std::f64::consts::PI;

use tch::{Device, Kind, Tensor};

use super::Stream;
use crate::{memory, torch, Result};

/// From this many values on, a CUDA device makes them itself. Below, some hundred launches of small kernels take longer
/// than the host does. An estimate: it has not been measured on a GPU.
const DEVICE_THRESHOLD: usize = 1 << 16;

const WORD_MASK: i64 = 0xFFFF_FFFF;

/// The first `each` values of draw number `draw` of each stream, distributed as N(0, 1): [streams, each], f32, on
/// `device`.
pub fn normal(streams: &[Stream], draw: u32, each: usize, device: Device) -> Result<Tensor> {
    if device.is_cuda() && streams.len() * each >= DEVICE_THRESHOLD {
        return normal_on(streams, draw, each, device);
    }
    let mut values = memory::zeroed(streams.len() * each)?;
    for (stream, image) in streams.iter().zip(values.chunks_exact_mut(each.max(1))) {
        stream.fill_normal(draw, image);
    }
    torch::cuda::upload(&values, &[streams.len() as i64, each as i64], device)
}

/// [`normal`], computed by the device whatever it is.
pub fn normal_on(streams: &[Stream], draw: u32, each: usize, device: Device) -> Result<Tensor> {
    let Words { radii, angles } = words(streams, draw, each.div_ceil(super::WORDS), device)?;
    let u = radii.f_to_kind(Kind::Double)?.f_add_scalar(0.5)?.f_mul_scalar(1.0 / (1u64 << 32) as f64)?;
    let r = u.f_log()?.f_mul_scalar(-2.0)?.f_sqrt()?;
    let half = angles.f_bitwise_and(0x7FFF_FFFF_i64)?.f_to_kind(Kind::Double)?.f_add_scalar(0.5)?;
    let half_turns = half.f_mul_scalar(1.0 / (1u64 << 31) as f64)?.f_sub_scalar(0.5)?;
    let angle = half_turns.f_mul_scalar(PI)?;
    // -1 where the top bit is set, else 1.
    let mirror = angles.f_bitwise_right_shift_tensor_scalar(31)?.f_mul_scalar(-2)?.f_add_scalar(1)?;
    let x = angle.f_cos()?.f_mul(&r)?.f_mul(&mirror)?;
    let y = angle.f_sin()?.f_mul(&r)?;
    // [pair, streams, blocks, value of the pair] -> [streams, blocks, 4] -> [streams, values]
    let values = Tensor::f_stack(&[x, y], -1)?.f_to_kind(Kind::Float)?.f_permute([1, 2, 0, 3])?;
    let values = values.f_reshape([streams.len() as i64, -1])?;
    Ok(values.f_narrow(1, 0, each as i64)?.f_contiguous()?)
}

/// What a draw's blocks consist of, int64 in 0..2^32: [2, streams, blocks] each.
struct Words {
    /// Words 0 and 2.
    radii: Tensor,
    /// Words 1 and 3.
    angles: Tensor,
}

/// Philox4x32-10 on the first `blocks` counters of a draw of each stream.
fn words(streams: &[Stream], draw: u32, blocks: usize, device: Device) -> Result<Words> {
    let (rows, blocks) = (streams.len() as i64, blocks as i64);
    let parts: [fn(&Stream) -> u32; 4] = [|s| s.image[0], |s| s.image[1], |s| s.key[0], |s| s.key[1]];
    let mut numbers: Vec<i64> =
        parts.iter().flat_map(|part| streams.iter().map(|s| part(s).into())).collect();
    numbers.extend(super::MULTIPLIERS.iter().chain(&super::WEYL).map(|&number| i64::from(number)));
    // One small copy to the device for all.
    let numbers = torch::cuda::upload(&numbers, &[4 * rows + 4], device)?;
    let column = |first, n| numbers.f_narrow(0, first, 2 * n)?.f_view([2, n, 1]);
    let (multipliers, weyl) = (column(4 * rows, 1)?, column(4 * rows + 2, 1)?);
    let (image, mut key) = (column(0, rows)?, column(2 * rows, rows)?); // [2, streams, 1]

    // The counter is [block, draw, image low, image high]. Words 0 and 2 of it go through the same steps, and so do
    // words 1 and 3: the former are multiplied, the latter mixed in.
    let block = Tensor::f_arange(blocks, (Kind::Int64, device))?.f_bitwise_and(WORD_MASK)?;
    let pair = |first: &Tensor, second: &Tensor| -> Result<Tensor> {
        let whole = [rows, blocks];
        Ok(Tensor::f_stack(&[first.f_expand(whole, false)?, second.f_expand(whole, false)?], 0)?)
    };
    let draw = Tensor::f_full([1], i64::from(draw), (Kind::Int64, device))?;
    let mut multiplied = pair(&block, &image.f_select(0, 0)?)?;
    let mut mixed = pair(&draw, &image.f_select(0, 1)?)?;
    for _ in 0..super::ROUNDS {
        // The products change places: word 0 comes of word 2, and the other way around.
        let product = multiplied.f_mul(&multipliers)?.f_flip([0])?;
        multiplied = product
            .f_bitwise_right_shift_tensor_scalar(32)?
            .f_bitwise_and_(WORD_MASK)?
            .f_bitwise_xor_tensor_(&mixed)?
            .f_bitwise_xor_tensor_(&key)?;
        mixed = product.f_bitwise_and(WORD_MASK)?;
        key = key.f_add(&weyl)?.f_bitwise_and(WORD_MASK)?;
    }
    Ok(Words { radii: multiplied, angles: mixed })
}

#[cfg(test)]
mod tests {
    use super::super::{philox, Domain};
    use super::*;

    /// Streams of every kind: small and large seeds and images, every domain.
    fn streams() -> Vec<Stream> {
        let numbers = [0, 1, 7, 0xFFFF_FFFF, 0x1_0000_0000, 0x8000_0000_8000_0000, u64::MAX];
        let domains = [Domain::Sample, Domain::Init, Domain::Train, Domain::Dropout];
        (numbers.iter().flat_map(|&seed| numbers.map(|image| (seed, image))))
            .flat_map(|(seed, image)| domains.map(|domain| Stream::new(domain, seed, image)))
            .collect()
    }

    #[test]
    fn words_are_philoxs_bit_for_bit() {
        let (streams, blocks) = (streams(), 37);
        let mut compared = 0;
        for draw in [0, 1, 999, u32::MAX] {
            let Words { radii, angles } = words(&streams, draw, blocks, Device::Cpu).unwrap();
            // [2, streams, blocks] twice -> [streams, blocks, word], word being 0, 1, 2, 3
            let found = Tensor::stack(&[radii, angles], 1).flatten(0, 1).permute([1, 2, 0]);
            let found: Vec<i64> = Vec::try_from(found.contiguous().view(-1)).unwrap();
            let mut found = found.into_iter();
            for stream in &streams {
                for block in 0..blocks as u32 {
                    for [word] in philox(stream.counter([block], draw), stream.key) {
                        assert_eq!(
                            found.next(),
                            Some(i64::from(word)),
                            "{stream:?}, draw {draw}, block {block}"
                        );
                        compared += 1;
                    }
                }
            }
            assert_eq!(found.next(), None);
        }
        println!("{compared} words of {} streams are the same", streams.len());
    }

    #[test]
    fn normals_are_the_hosts_within_a_millionth() {
        let streams = streams();
        let (mut worst, mut differ, mut all) = (0f64, 0usize, 0usize);
        // Lengths that fill the last block and that do not.
        for (draw, each) in [(0, 3072), (1, 1), (2, 5), (u32::MAX, 1000)] {
            let found = normal_on(&streams, draw, each, Device::Cpu).unwrap();
            assert_eq!(found.size(), [streams.len() as i64, each as i64]);
            assert_eq!(found.kind(), Kind::Float);
            let wanted = normal(&streams, draw, each, Device::Cpu).unwrap();
            let difference = (found - wanted).abs();
            worst = worst.max(difference.max().double_value(&[]));
            differ += difference.count_nonzero(None).int64_value(&[]) as usize;
            all += streams.len() * each;
        }
        println!("{all} normals: {differ} differ, by at most {worst:e}");
        assert!(worst <= 1e-6, "{worst:e}");
        assert!(differ * 1000 < all, "{differ} of {all} differ");
    }

    /// A device that drew other noise for another batch would make other images.
    #[test]
    fn a_streams_normals_do_not_depend_on_its_neighbours() {
        let streams = streams();
        let whole = normal_on(&streams, 3, 100, Device::Cpu).unwrap();
        for (row, stream) in (0..).zip(&streams) {
            let alone = normal_on(&[*stream], 3, 100, Device::Cpu).unwrap();
            assert!(whole.get(row).equal(&alone.get(0)), "{stream:?}");
        }
    }
}
