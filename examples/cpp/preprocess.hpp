// From an image to the model's input, as `preprocess` of the manifest says: the bytes are those of vitdeploy and Pillow.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>

#include "image.hpp"
#include "model.hpp"

// An image after resizing, and the place of the input's corner in it (below 0 where the image is padded).
struct Place {
    int height, width, top, left;
};

// ---- resizing: Pillow's convolution, whose filter widens where an image is made smaller --------------------------

struct Filter {
    double support;
    std::function<double(double)> weight;
};

inline Filter find_filter(const Preprocess& p) {
    if (!p.antialias) throw std::runtime_error("this example resizes with antialiasing only");
    if (p.interpolation == "bilinear") return {1, [](double x) { return std::max(0.0, 1 - std::abs(x)); }};
    if (p.interpolation == "bicubic")
        return {2, [](double x) {
                    const double a = -0.5;
                    x = std::abs(x);
                    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
                    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
                }};
    if (p.interpolation == "lanczos")
        return {3, [](double x) {
                    auto sinc = [](double v) { return v == 0 ? 1 : std::sin(v * M_PI) / (v * M_PI); };
                    return -3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0.0;
                }};
    throw std::runtime_error("this example does not resize with " + p.interpolation);
}

// Resize along one axis: `lines` of `from` pixels become lines of `to` pixels; the steps are in bytes.
inline void resize_axis(const uint8_t* in, int from, int in_step, int in_line, uint8_t* out, int to, int out_step,
                        int out_line, int lines, int channels, const Filter& filter) {
    constexpr int BITS = 32 - 8 - 2;  // Pillow's fixed-point weights
    const double scale = double(from) / to, width = std::max(scale, 1.0), support = filter.support * width;
    std::vector<double> weights;
    std::vector<int> fixed;
    for (int i = 0; i < to; i++) {
        const double centre = (i + 0.5) * scale;
        const int first = std::max(0, int(centre - support + 0.5));
        const int count = std::min(from, int(centre + support + 0.5)) - first;
        double sum = 0;
        weights.assign(count, 0);
        for (int k = 0; k < count; k++) sum += weights[k] = filter.weight((k + first - centre + 0.5) * (1.0 / width));
        fixed.assign(count, 0);
        for (int k = 0; k < count; k++) {
            const double weight = (sum != 0 ? weights[k] / sum : weights[k]) * (1 << BITS);
            fixed[k] = int(weight < 0 ? weight - 0.5 : weight + 0.5);
        }
        for (int line = 0; line < lines; line++)
            for (int c = 0; c < channels; c++) {
                int value = 1 << (BITS - 1);
                for (int k = 0; k < count; k++)
                    value += in[size_t(line) * in_line + size_t(first + k) * in_step + c] * fixed[k];
                out[size_t(line) * out_line + size_t(i) * out_step + c] = uint8_t(std::clamp(value >> BITS, 0, 255));
            }
    }
}

inline Image resize_width(const Image& image, int width, const Filter& filter) {
    const int c = image.channels, height = image.height;
    Image out{height, width, c, std::vector<uint8_t>(size_t(height) * width * c)};
    resize_axis(image.bytes.data(), image.width, c, image.width * c, out.bytes.data(), width, c, width * c, height, c,
                filter);
    return out;
}

inline Image resize_height(const Image& image, int height, const Filter& filter) {
    const int c = image.channels, width = image.width;
    Image out{height, width, c, std::vector<uint8_t>(size_t(height) * width * c)};
    resize_axis(image.bytes.data(), image.height, width * c, c, out.bytes.data(), height, width * c, c, width, c,
                filter);
    return out;
}

inline Image resize(const Image& image, int height, int width, const Preprocess& p) {
    if (height == image.height && width == image.width) return image;
    const Filter filter = find_filter(p);
    // Each pass rounds to bytes, so the order matters. Pillow 13 has this rule; before, the width always came first,
    // and a few pixels differ by 1.
    const int shorter = image.height - height, narrower = image.width - width;
    const bool height_first = shorter > 0 && shorter > 2 * narrower;
    Image resized = height_first ? resize_height(image, height, filter) : image;
    if (width != image.width) resized = resize_width(resized, width, filter);
    return height == resized.height ? resized : resize_height(resized, height, filter);
}

// ---- sizes: what vitdeploy/data/geometry.py does ------------------------------------------------------------------

using Sides = std::array<double, 2>;  // height, width

inline double round_even(double value) { return std::nearbyint(value); }  // half to even, as Python's round

inline std::array<int, 2> size_before_crop(const Preprocess& p) {
    if (p.resize_to[0]) return p.resize_to;
    auto side = [&](int size) { return std::max(1, int(size / p.crop_pct + 1e-6)); };
    return {side(p.height), side(p.width)};
}

inline std::array<int, 2> round_sides(Sides sides, const Preprocess& p) {
    std::array<int, 2> rounded;
    for (int i = 0; i < 2; i++) {
        const double side = sides[i];
        const int whole = int(side), d = p.divisor;
        const int count = p.rounding == "down"      ? whole / d
                          : p.rounding == "up"      ? (whole + d - 1) / d
                          : p.rounding == "nearest" ? int(side / d + 0.5)
                                                    : int(round_even(side / d));
        rounded[i] = std::max(1, count) * d;
    }
    return rounded;
}

inline Sides scale_to_edges(double height, double width, const Preprocess& p) {
    const double small = std::min(height, width), large = std::max(height, width);
    if (!p.shortest_edge) {
        const double scale = (p.longest_edge ? p.longest_edge : large) / large;
        return {height * scale, width * scale};
    }
    double edge = p.shortest_edge, factor = edge;
    if (p.longest_edge && large / small * p.shortest_edge > p.longest_edge) {
        factor = p.longest_edge * small / large;
        edge = round_even(factor);
    }
    if (small == edge) return {height, width};
    return width < height ? Sides{factor * height / width, edge} : Sides{edge, factor * width / height};
}

inline std::array<int, 2> fit_letterbox(double height, double width, const Preprocess& p) {
    const auto limit = size_before_crop(p);
    Sides sides;
    if (p.shortest_edge || p.longest_edge) {
        const auto rounded = round_sides(scale_to_edges(height, width, p), p);
        if (rounded[0] <= limit[0] && rounded[1] <= limit[1]) return rounded;
    }
    if (!p.shortest_edge && !p.longest_edge && !p.enlarge && height <= limit[0] && width <= limit[1]) {
        sides = {height, width};
    } else if (p.rounding == "even") {
        const double ratio = std::max(height / limit[0], width / limit[1]);
        sides = {height / ratio, width / ratio};
    } else {
        const double scale = std::min(limit[0] / height, limit[1] / width);
        sides = {height * scale, width * scale};
    }
    auto rounded = round_sides(sides, p);
    for (int i = 0; i < 2; i++) rounded[i] = std::min(rounded[i], std::max(limit[i] / p.divisor, 1) * p.divisor);
    return rounded;
}

inline std::array<int, 2> resized_size(int height, int width, const Preprocess& p) {
    if (p.resize == "letterbox") return fit_letterbox(height, width, p);
    const auto target = size_before_crop(p);
    if (p.resize == "exact") return target;
    if (target[0] == target[1]) {
        const int side = target[0];
        if (height <= width) return {side, int(double(side) * width / height)};
        return {int(double(side) * height / width), side};
    }
    const double ratio = std::min(double(height) / target[0], double(width) / target[1]);
    return {std::max(target[0], int(round_even(height / ratio))), std::max(target[1], int(round_even(width / ratio)))};
}

inline Place find_place(int height, int width, const Preprocess& p) {
    const auto resized = resized_size(height, width, p);
    auto corner = [&](int side, int size) {
        if (side < size) return p.padding == "centre" ? -((size - side) / 2) : 0;
        return p.crop_rounding == "down" ? (side - size) / 2 : int(round_even((side - size) / 2.0));
    };
    return {resized[0], resized[1], corner(resized[0], p.height), corner(resized[1], p.width)};
}

// ---- the input ---------------------------------------------------------------------------------------------------

// The bytes of the input, plane by plane: the channels in the model's order, and a mask if it takes one.
inline std::vector<uint8_t> to_planes(const Image& photo, const Preprocess& p) {
    const Image upright = p.channels == 1 ? to_grey(photo) : photo;
    const Place place = find_place(upright.height, upright.width, p);
    const Image image = resize(upright, place.height, place.width, p);
    std::vector<uint8_t> planes;
    for (int c = 0; c < p.channels + p.mask; c++) {
        const bool is_mask = c == p.channels;
        const int channel = p.order == "bgr" ? p.channels - 1 - c : c;
        const int mean = is_mask ? 0 : std::clamp(int(round_even(255 * p.mean[c])), 0, 255);
        const int fill = is_mask || p.fill.empty() ? mean : p.fill[c];
        for (int y = place.top; y < place.top + p.height; y++)
            for (int x = place.left; x < place.left + p.width; x++) {
                const bool inside = 0 <= y && y < image.height && 0 <= x && x < image.width;
                planes.push_back(!inside ? uint8_t(fill) : is_mask ? 255 : image.at(y, x, channel));
            }
    }
    return planes;
}

// The input for a batch that repeats one image: bytes for "uint8", else float32, as raw memory.
inline std::vector<uint8_t> to_input(const std::vector<uint8_t>& planes, const Model& model) {
    const Preprocess& p = model.preprocess;
    std::vector<uint8_t> input;
    for (int image = 0; image < model.batch; image++) {
        if (model.form == "uint8") {
            input.insert(input.end(), planes.begin(), planes.end());
            continue;
        }
        const size_t area = size_t(p.height) * p.width;
        for (size_t i = 0; i < planes.size(); i++) {
            const size_t c = i / area;
            const bool is_mask = c == size_t(p.channels);
            float value = planes[i];
            if (model.form == "normalized")
                value = (value / 255.0f - (is_mask ? 0.0f : float(p.mean[c]))) / (is_mask ? 1.0f : float(p.std[c]));
            const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
            input.insert(input.end(), bytes, bytes + sizeof value);
        }
    }
    return input;
}
