"""Each operation on pixels against Pillow's, and what all of them promise: range, whole values, the same everywhere."""

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from PIL import ImageEnhance, ImageFilter, ImageOps
from sklearn.datasets import load_digits, load_sample_images

from trainer.data.augmentation import randaugment
from trainer.data.augmentation.color_operations import ColorOperation, change_colors, jitter_colors
from trainer.data.augmentation.warp import FILL, round_matrices, warp_images

SIZE_PX = 64
FACTORS = (0.0, 0.25, 0.5, 1.0, 1.375, 1.90625)


def make_images() -> np.ndarray:
    """[6, 64, 64, 3] uint8: two photographs, a digit, noise, one colour, and two colours."""
    photographs = [
        np.asarray(PIL.Image.fromarray(photograph).resize((SIZE_PX, SIZE_PX), PIL.Image.Resampling.BILINEAR))
        for photograph in load_sample_images().images
    ]
    digit = np.repeat(np.kron(load_digits().images[0] * 255 / 16, np.ones([8, 8]))[..., np.newaxis], 3, axis=-1)
    noise = np.random.default_rng(0).integers(0, 256, [SIZE_PX, SIZE_PX, 3])
    flat = np.full([SIZE_PX, SIZE_PX, 3], (12, 130, 250))
    halves = np.where(np.arange(SIZE_PX)[:, np.newaxis, np.newaxis] < 20, flat, flat[..., ::-1])
    return np.stack([*photographs, digit, noise, flat, halves]).astype(np.uint8)


IMAGES = make_images()
PILLOW_IMAGES = [PIL.Image.fromarray(image) for image in IMAGES]


def change(operation: ColorOperation, level: float, images: np.ndarray = IMAGES) -> np.ndarray:
    n = len(images)
    changed = change_colors(
        tf.constant(images, tf.float32), tf.fill([n], float(operation)), tf.fill([n], float(level))
    ).numpy()
    return check_pixels(changed, images.shape)


def warp(matrix: np.ndarray, images: np.ndarray = IMAGES) -> np.ndarray:
    matrices = round_matrices(tf.tile(tf.constant(matrix.reshape(1, 6), tf.float32), [len(images), 1]))
    return check_pixels(warp_images(tf.constant(images, tf.float32), matrices).numpy(), images.shape)


def check_pixels(pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    assert pixels.dtype == np.float32 and pixels.shape == shape
    assert pixels.min() >= 0 and pixels.max() <= 255
    np.testing.assert_array_equal(pixels, np.round(pixels))
    return pixels


def as_array(images: list[PIL.Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, np.float32) for image in images])


ENHANCERS = {
    ColorOperation.BRIGHTNESS: ImageEnhance.Brightness,
    ColorOperation.CONTRAST: ImageEnhance.Contrast,
    ColorOperation.COLOR: ImageEnhance.Color,
    ColorOperation.SHARPNESS: ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("operation", ENHANCERS, ids=lambda o: o.name.lower())
def test_a_blend_is_within_one_value_of_pillow(operation: ColorOperation, factor: float) -> None:
    expected = as_array([ENHANCERS[operation](image).enhance(factor) for image in PILLOW_IMAGES])
    # Pillow cuts off the fraction, and rounds the smoothed image a second time.
    np.testing.assert_allclose(change(operation, factor), expected, atol=1)


def test_smoothing_is_that_of_pillow_in_every_pixel() -> None:
    expected = as_array([image.filter(ImageFilter.SMOOTH) for image in PILLOW_IMAGES])
    np.testing.assert_array_equal(change(ColorOperation.SHARPNESS, 0.0), expected)


@pytest.mark.parametrize("num_bits", [8, 7, 6, 5, 4, 1])
def test_posterize_is_that_of_pillow_in_every_pixel(num_bits: int) -> None:
    expected = as_array([ImageOps.posterize(image, num_bits) for image in PILLOW_IMAGES])
    np.testing.assert_array_equal(change(ColorOperation.POSTERIZE, 2 ** (8 - num_bits)), expected)


@pytest.mark.parametrize("threshold", [0, 1, 77, 128, 255, 256])
def test_solarize_is_that_of_pillow_in_every_pixel(threshold: int) -> None:
    expected = as_array([ImageOps.solarize(image, threshold) for image in PILLOW_IMAGES])
    np.testing.assert_array_equal(change(ColorOperation.SOLARIZE, threshold), expected)


def test_solarize_of_all_values_is_pillows_invert() -> None:
    expected = as_array([ImageOps.invert(image) for image in PILLOW_IMAGES])
    np.testing.assert_array_equal(change(ColorOperation.SOLARIZE, 0), expected)


def test_autocontrast_is_within_one_value_of_pillow() -> None:
    dull = (IMAGES // 3 + 40).astype(np.uint8)
    expected = as_array([ImageOps.autocontrast(PIL.Image.fromarray(image)) for image in dull])
    changed = change(ColorOperation.AUTOCONTRAST, 0, dull)
    # Where a quotient is a whole number, Pillow's product with a rounded inverse may fall just below it.
    np.testing.assert_allclose(changed, expected, atol=1)
    assert changed[0].min() == 0 and changed[0].max() == 255
    np.testing.assert_array_equal(changed[4], dull[4], "a single colour cannot be stretched")


def test_equalize_is_that_of_pillow_in_every_pixel() -> None:
    expected = as_array([ImageOps.equalize(image) for image in PILLOW_IMAGES])
    np.testing.assert_array_equal(change(ColorOperation.EQUALIZE, 0), expected)


def test_color_jitter_is_pillows_three_enhancers_one_after_the_other() -> None:
    factors = np.array([1.25, 0.75, 1.5], np.float32)
    jittered = jitter_colors(tf.constant(IMAGES, tf.float32), tf.tile(factors[np.newaxis], [len(IMAGES), 1])).numpy()
    expected = PILLOW_IMAGES
    for enhancer, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors.tolist(), strict=True
    ):
        expected = [enhancer(image).enhance(factor) for image in expected]
    # A value each, and what the later two make of the differences before them.
    np.testing.assert_allclose(check_pixels(jittered, IMAGES.shape), as_array(expected), atol=5)
    swapped = jitter_colors(tf.constant(IMAGES, tf.float32), tf.tile(factors[np.newaxis, ::-1], [len(IMAGES), 1]))
    assert np.abs(swapped.numpy() - as_array(expected)).max() > 40


def rotation(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])


def test_a_quarter_turn_moves_every_pixel_to_its_place() -> None:
    np.testing.assert_array_equal(warp(rotation(90)), np.rot90(IMAGES, axes=(1, 2)))


@pytest.mark.parametrize("degrees", [-30.0, 7.0, 30.0])
def test_rotation_is_close_to_that_of_pillow(degrees: float) -> None:
    expected = as_array(
        [image.rotate(degrees, PIL.Image.Resampling.BILINEAR, fillcolor=(int(FILL),) * 3) for image in PILLOW_IMAGES]
    )
    rotated = warp(rotation(degrees))
    # Points are rounded to 1/64 px: between neighbours 255 apart that is 4 values in each direction. A pixel whose
    # point is on the very border may be outside for one and inside for the other.
    assert np.mean(np.abs(rotated - expected) > 5) < 0.002
    assert np.abs(rotated - expected)[:2].mean() < 0.6, "Pillow cuts off the fraction, half a value on average"


def test_a_shear_and_a_translation_are_those_of_pillow() -> None:
    matrix = np.array([[1, 0.25, 3.5], [0, 1, -7]])
    half = SIZE_PX / 2
    # Pillow counts from the corner of the image, and grey outside comes from a larger image that is grey.
    large = [ImageOps.expand(image, SIZE_PX, fill=(int(FILL),) * 3) for image in PILLOW_IMAGES]
    corner = SIZE_PX + half
    coefficients = (1, 0.25, corner - half - 0.25 * half + 3.5, 0, 1, corner - half - 7)
    expected = as_array(
        [
            image.transform((SIZE_PX,) * 2, PIL.Image.Transform.AFFINE, coefficients, PIL.Image.Resampling.BILINEAR)
            for image in large
        ]
    )
    warped = warp(matrix)
    is_image = (warped != FILL).any(axis=(0, -1)) & np.roll((warped != FILL).any(axis=(0, -1)), 1, axis=1)
    inner = is_image[1:-1, 1:-1] & is_image[:-2, 1:-1] & is_image[2:, 1:-1] & is_image[1:-1, 2:]
    np.testing.assert_allclose(warped[:, 1:-1, 1:-1][:, inner], expected[:, 1:-1, 1:-1][:, inner], atol=5)


def test_no_warp_is_no_change() -> None:
    np.testing.assert_array_equal(warp(np.eye(3)[:2]), IMAGES)


@pytest.mark.parametrize("operation", ENHANCERS, ids=lambda o: o.name.lower())
def test_a_blend_by_one_is_no_change(operation: ColorOperation) -> None:
    np.testing.assert_array_equal(change(operation, 1.0), IMAGES)


def choices(magnitude: float, num_layers: int = 1) -> randaugment.RandAugment:
    """Every operation with either sign, once."""
    uniforms = (np.arange(28, dtype=np.float32) + 0.5) / 28
    return randaugment.choose(tf.tile(uniforms[:, np.newaxis], [1, num_layers]), magnitude, SIZE_PX)


def apply_choice(choice: randaugment.RandAugment, i: int, images: np.ndarray) -> np.ndarray:
    n = len(images)
    pixels = warp_images(tf.constant(images, tf.float32), tf.tile(choice.matrices[i : i + 1], [n, 1]))
    for layer in range(choice.operations.shape[1]):
        operations, levels = (tf.fill([n], part[i, layer]) for part in (choice.operations, choice.levels))
        pixels = change_colors(pixels, operations, levels)
    return check_pixels(pixels.numpy(), images.shape)


def test_at_magnitude_zero_only_what_has_no_magnitude_changes_an_image() -> None:
    choice = choices(0)
    changed = {
        int(choice.operations[i, 0]) for i in range(28) if not np.array_equal(apply_choice(choice, i, IMAGES), IMAGES)
    }
    assert changed == {ColorOperation.AUTOCONTRAST, ColorOperation.EQUALIZE}


def test_at_full_magnitude_all_operations_but_one_change_a_photograph() -> None:
    choice = choices(10)
    unchanged = [i for i in range(28) if np.array_equal(apply_choice(choice, i, IMAGES[:1]), IMAGES[:1])]
    assert len(unchanged) == 2, "no change is one of the 14 operations"


def test_the_operations_are_14_equally_likely_ones_and_signed_ones_come_with_both_signs() -> None:
    choice = choices(10)
    operations = np.bincount(choice.operations.numpy()[:, 0].astype(int), minlength=9)
    assert operations.tolist() == [2 + 5 * 2, *[2] * 8]
    for operation in ENHANCERS:
        levels = choice.levels.numpy()[choice.operations.numpy() == operation]
        np.testing.assert_allclose(np.sort(levels), [0.1, 1.9], atol=1 / 256)
    matrices = choice.matrices.numpy().reshape(-1, 2, 3)
    warps = matrices[(matrices != np.eye(3)[:2]).any(axis=(1, 2))]
    assert len(warps) == 10
    np.testing.assert_allclose(warps.mean(axis=0)[:, 2], 0, atol=1e-6)
    assert np.abs(warps[:, 0, 1]).max() == pytest.approx(0.5, abs=1e-3), "sin of 30 degrees"
    assert np.abs(warps[:, :, 2]).max() == pytest.approx(SIZE_PX * 150 / 331, abs=1e-3)


def test_two_warps_are_composed_in_the_order_of_the_layers() -> None:
    uniforms = (np.array([[23, 26]], np.float32) + 0.5) / 28  # turn, then move to the side
    both = randaugment.choose(tf.constant(uniforms), 10, SIZE_PX)
    first, second = (randaugment.choose(tf.constant(uniforms[:, i : i + 1]), 10, SIZE_PX).matrices for i in (0, 1))
    smooth = np.asarray(PIL.Image.fromarray(IMAGES[0]).resize((4, 4)).resize((SIZE_PX, SIZE_PX)))[np.newaxis]
    one_by_one = warp_images(warp_images(tf.constant(smooth, tf.float32), first), second).numpy()
    at_once = warp_images(tf.constant(smooth, tf.float32), both.matrices).numpy()
    swapped = warp_images(warp_images(tf.constant(smooth, tf.float32), second), first).numpy()
    assert np.mean(np.abs(at_once - one_by_one) > 3) < 0.05, "all but the borders, which are interpolated twice"
    assert np.mean(np.abs(at_once - swapped) > 3) > 0.2


@pytest.mark.parametrize("num_layers", [1, 2])
def test_xla_finds_the_same_pixels_bit_for_bit(num_layers: int) -> None:
    choice = choices(9, num_layers)
    images = tf.constant(np.resize(IMAGES, [28, *IMAGES.shape[1:]]), tf.float32)

    def augment(images: tf.Tensor, matrices: tf.Tensor, operations: tf.Tensor, levels: tf.Tensor) -> tf.Tensor:
        pixels = warp_images(images, matrices)
        for layer in range(num_layers):
            pixels = change_colors(pixels, operations[:, layer], levels[:, layer])
        return pixels

    with_xla, without = (
        tf.function(augment, jit_compile=jit_compile)(images, *choice).numpy() for jit_compile in (True, False)
    )
    np.testing.assert_array_equal(with_xla, without)
    assert (with_xla != images.numpy()).any(axis=(1, 2, 3)).sum() >= 24
