//! Pictures as tensors: read, cut and resized to what the network takes. Channels, mean and scale are the library's affair.

use std::path::Path;

use image::imageops::FilterType;
use image::{DynamicImage, ImageError, ImageReader};
use ncs2::ErrorKind;
use ncs2::blob::{DataType, IoTensor};
use ncs2::convert::recipe::{InputRecipe, Layout, Numbers};

use super::{layout, shape_text};
use crate::failure::{Failure, Result};
use crate::flags::{Crop, ImageArgs};

/// Pixels of a picture that was resized before it is cut.
const LARGEST_PIXELS: u64 = 1 << 28;

/// Reads a picture for `tensor`: `(pixel − mean) / scale`, cut as `--crop` says, bilinear, red first unless `--bgr`. Packed, in
/// the tensor's own type.
pub fn read(path: &Path, tensor: &IoTensor, args: &ImageArgs) -> Result<Vec<u8>> {
    let bad = |expected: String, found: String, hint: &str| {
        Failure::new(
            ErrorKind::InvalidInput,
            format!("{}: expected {expected}, found {found}", path.display()),
            hint,
        )
    };
    let dim = |digit| tensor.order.position(digit).and_then(|p| tensor.dims.get(p)).map(|&d| d as usize);
    let shape = layout::shape(tensor);
    let (channels, height, width) = match (dim(3), dim(2), dim(1)) {
        (Some(c @ (1 | 3)), Some(h), Some(w)) if c * h * w == layout::elements(tensor) => (c, h, w),
        _ => {
            let expected =
                format!("a .npy or .bin for input {} of shape {}", tensor.name, shape_text(&shape));
            return Err(bad(expected, "a picture".into(), "pictures fit inputs of 1 or 3 channels"));
        }
    };
    let prepared = !args.mean.is_empty() || !args.scale.is_empty();
    if prepared && !matches!(tensor.dtype, DataType::F16 | DataType::F32) {
        return Err(bad(
            format!("{} pixels for input {}", tensor.dtype.as_str(), tensor.name),
            "--mean or --scale".into(),
            "leave them out: a network that takes u8 does this itself",
        ));
    }
    let recipe = InputRecipe {
        layout: Layout::Interleaved,
        mean: args.mean.clone(),
        scale: args.scale.clone(),
        bgr: args.bgr,
        resize: None,
    };
    recipe.check(tensor).map_err(|e| match e.kind() {
        ErrorKind::InvalidInput => {
            Failure::usage(format!("--mean, --scale: {e}"), "see `ncs2ctl run --help`")
        }
        _ => e.into(),
    })?;

    let reader = ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .map_err(|e| Failure::file(path, "read", &e))?;
    let picture = reader.decode().map_err(|e| match e {
        ImageError::IoError(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => {
            Failure::file(path, "read", &e)
        }
        e => bad("a .png or .jpg picture".into(), e.to_string(), "convert it to .png"),
    })?;
    let (w, h) = (u32::try_from(width).unwrap_or(u32::MAX), u32::try_from(height).unwrap_or(u32::MAX));
    let picture = cut(picture, args.crop, w, h)
        .map_err(|(expected, found)| bad(expected, found, "see `ncs2ctl run --help`"))?;
    let pixels = if channels == 3 {
        image::imageops::resize(&picture.to_rgb8(), w, h, FilterType::Triangle).into_raw()
    } else {
        image::imageops::resize(&picture.to_luma8(), w, h, FilterType::Triangle).into_raw()
    };
    Ok(recipe.packed(tensor, &Numbers::U8(pixels.into()))?)
}

/// The part of the picture that `crop` says, for a network of `w` by `h`. `(expected, found)` where it has no such part.
fn cut(picture: DynamicImage, crop: Option<Crop>, w: u32, h: u32) -> Result<DynamicImage, (String, String)> {
    let middle = |picture: &DynamicImage, w: u32, h: u32| {
        picture.crop_imm((picture.width() - w) / 2, (picture.height() - h) / 2, w, h)
    };
    let size = |p: &DynamicImage| format!("{}x{}", p.width(), p.height());
    match crop {
        None => Ok(picture),
        Some(Crop::Part { w, h, x, y }) => {
            let fits = |at: u32, len: u32, of: u32| at.checked_add(len).is_some_and(|end| end <= of);
            if !fits(x, w, picture.width()) || !fits(y, h, picture.height()) {
                return Err((format!("a picture that holds {w}x{h}+{x}+{y}"), size(&picture)));
            }
            Ok(picture.crop_imm(x, y, w, h))
        }
        Some(Crop::Center) => {
            let (pw, ph) = (u64::from(picture.width()), u64::from(picture.height()));
            let (nw, nh) = (u64::from(w), u64::from(h));
            // As wide as it is, or as high: what the other side allows.
            let (cw, ch) = if pw * nh > ph * nw { (ph * nw / nh, ph) } else { (pw, pw * nh / nw) };
            let side = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).max(1);
            Ok(middle(&picture, side(cw), side(ch)))
        }
        Some(Crop::Side(side)) => {
            if side < w.max(h) {
                return Err((format!("--crop of at least {}", w.max(h)), side.to_string()));
            }
            let short = picture.width().min(picture.height()).max(1);
            let scaled = |n: u32| u32::try_from(u64::from(n) * u64::from(side) / u64::from(short));
            let (Ok(sw), Ok(sh)) = (scaled(picture.width()), scaled(picture.height())) else {
                return Err(("a picture of ordinary shape".into(), size(&picture)));
            };
            if u64::from(sw) * u64::from(sh) > LARGEST_PIXELS {
                return Err(("a picture of ordinary shape".into(), size(&picture)));
            }
            let resized = picture.resize_exact(sw.max(side), sh.max(side), FilterType::Triangle);
            Ok(middle(&resized, w, h))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Values;
    use image::{Rgb, RgbImage};
    use ncs2::blob::Order;

    fn tensor(dtype: DataType) -> IoTensor {
        let e = dtype.bytes() as u32;
        IoTensor {
            name: "data".into(),
            dtype,
            order: Order(0x4321),
            dims: vec![2, 1, 3, 1],
            strides: vec![e, 2 * e, 2 * e, 6 * e],
            offset: 0,
        }
    }

    #[test]
    fn pixels_become_planes() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("p.png");
        let mut picture = RgbImage::new(2, 1);
        picture.put_pixel(0, 0, Rgb([10, 20, 30]));
        picture.put_pixel(1, 0, Rgb([40, 50, 60]));
        picture.save(&path).expect("written");
        let plain = ImageArgs::default();
        let bytes = read(&path, &tensor(DataType::U8), &plain).expect("fits");
        assert_eq!(bytes, [10, 40, 20, 50, 30, 60]);
        let bgr = ImageArgs { bgr: true, mean: vec![10.0], scale: vec![10.0], crop: None };
        let packed = read(&path, &tensor(DataType::F16), &bgr).expect("fits");
        let values = Values::decode(DataType::F16, &packed).to_f64();
        assert_eq!(values, [2.0, 5.0, 1.0, 4.0, 0.0, 3.0]);
        assert!(read(&path, &tensor(DataType::U8), &bgr).is_err(), "mean on u8");
        let two = ImageArgs { mean: vec![1.0, 2.0], ..plain };
        let Err(Failure::Report(report)) = read(&path, &tensor(DataType::F16), &two) else {
            panic!("two means for three channels")
        };
        assert_eq!(report.exit, crate::failure::exit::USAGE);
        assert!(
            report.message.contains("--mean, --scale: ") && report.message.contains("1 or 3 means, found 2")
        );
    }

    #[test]
    fn pictures_are_cut_where_the_user_says() {
        // Columns 0 to 7, four rows: every pixel says its column.
        let wide = || DynamicImage::from(image::GrayImage::from_fn(8, 4, |x, _| image::Luma([x as u8 * 10])));
        let of = |crop| {
            cut(wide(), crop, 2, 2).map(|p| (p.width(), p.height(), p.to_luma8().get_pixel(0, 0).0[0]))
        };
        assert_eq!(of(None), Ok((8, 4, 0)));
        assert_eq!(of(Some(Crop::Center)), Ok((4, 4, 20)), "square, as the network");
        assert_eq!(of(Some(Crop::Part { w: 3, h: 2, x: 5, y: 2 })), Ok((3, 2, 50)));
        assert_eq!(of(Some(Crop::Side(4))), Ok((2, 2, 30)), "the network's own size from the middle");
        assert!(of(Some(Crop::Part { w: 4, h: 2, x: 5, y: 0 })).is_err(), "beyond the edge");
        assert!(of(Some(Crop::Part { w: 4, h: 2, x: u32::MAX, y: 0 })).is_err());
        assert!(of(Some(Crop::Side(1))).is_err(), "smaller than the network");
        for (text, crop) in [("center", Crop::Center), ("256", Crop::Side(256))] {
            assert_eq!(text.parse(), Ok(crop));
        }
        assert_eq!("3x2+5+2".parse(), Ok(Crop::Part { w: 3, h: 2, x: 5, y: 2 }));
        for bad in ["", "0", "3x2", "0x2+1+1", "middle", "3x2+1", "-1"] {
            assert!(bad.parse::<Crop>().is_err(), "{bad}");
        }
    }
}
