// An image file as 8-bit RGB, upright: JPEG through libjpeg (as Pillow), PNG through stb_image.
#pragma once

#include <algorithm>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include <jpeglib.h>
#include <jerror.h>
#define STBI_ONLY_PNG
#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>

struct Image {  // rows of pixels, `channels` bytes each
    int height = 0, width = 0, channels = 3;
    std::vector<uint8_t> bytes;
    uint8_t at(int y, int x, int c) const { return bytes[(size_t(y) * width + x) * channels + c]; }
};

// The orientation in the Exif data of a JPEG, from 1 (upright) to 8.
inline int read_orientation(const uint8_t* data, size_t size) {
    if (size < 14 || std::string(data, data + 4) != "Exif") return 1;
    const uint8_t* tiff = data + 6;
    size -= 6;
    const bool little = tiff[0] == 'I';
    auto number = [&](size_t at, int bytes) {
        uint32_t value = 0;
        for (int i = 0; i < bytes && at + bytes <= size; i++)
            value |= uint32_t(tiff[at + i]) << 8 * (little ? i : bytes - 1 - i);
        return value;
    };
    const size_t directory = number(4, 4), entries = number(directory, 2);
    for (size_t entry = directory + 2; entry < directory + 2 + 12 * entries && entry + 12 <= size; entry += 12)
        if (number(entry, 2) == 0x0112) return std::clamp(int(number(entry + 8, 2)), 1, 8);
    return 1;
}

inline Image turn_upright(const Image& image, int orientation) {
    if (orientation == 1) return image;
    const bool sideways = orientation >= 5;
    Image turned{sideways ? image.width : image.height, sideways ? image.height : image.width, image.channels, {}};
    turned.bytes.reserve(image.bytes.size());
    const bool mirror_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool mirror_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    for (int y = 0; y < turned.height; y++)
        for (int x = 0; x < turned.width; x++) {
            const int row = sideways ? x : y, column = sideways ? y : x;
            for (int c = 0; c < image.channels; c++)
                turned.bytes.push_back(image.at(mirror_y ? image.height - 1 - row : row,
                                                mirror_x ? image.width - 1 - column : column, c));
        }
    return turned;
}

struct JpegErrors {
    jpeg_error_mgr base;  // first, so that libjpeg's pointer to it is a pointer to this
    std::jmp_buf jump;    // libjpeg is C: no exception may pass through it
    char message[JMSG_LENGTH_MAX];
};

[[noreturn]] inline void fail_jpeg(j_common_ptr info) {
    auto* errors = reinterpret_cast<JpegErrors*>(info->err);
    info->err->format_message(info, errors->message);
    std::longjmp(errors->jump, 1);
}

inline void refuse_cut_jpeg(j_common_ptr info, int level) {
    if (level < 0 && info->err->msg_code == JWRN_JPEG_EOF) fail_jpeg(info);
}

// Fills `image` (and not a local, whose value a longjmp would lose), and returns the orientation.
inline int read_jpeg(FILE* file, Image& image) {
    jpeg_decompress_struct info{};
    JpegErrors errors{};
    info.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = fail_jpeg;
    errors.base.emit_message = refuse_cut_jpeg;
    jpeg_create_decompress(&info);
    if (setjmp(errors.jump)) {
        jpeg_destroy_decompress(&info);
        throw std::runtime_error(std::string("damaged or unusual JPEG: ") + errors.message);
    }
    jpeg_stdio_src(&info, file);
    jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(&info, TRUE);
    info.out_color_space = JCS_RGB;  // libjpeg refuses CMYK here
    jpeg_start_decompress(&info);
    image.height = int(info.output_height);
    image.width = int(info.output_width);
    image.bytes.resize(size_t(image.height) * image.width * 3);
    while (info.output_scanline < info.output_height) {
        JSAMPROW row = image.bytes.data() + size_t(info.output_scanline) * image.width * 3;
        jpeg_read_scanlines(&info, &row, 1);
    }
    int orientation = 1;
    for (auto* marker = info.marker_list; marker && orientation == 1; marker = marker->next)
        orientation = read_orientation(marker->data, marker->data_length);
    jpeg_finish_decompress(&info);  // it frees the markers
    jpeg_destroy_decompress(&info);
    return orientation;
}

inline Image read_png(const std::string& path) {
    if (stbi_is_16_bit(path.c_str())) throw std::runtime_error("a PNG with 16 bits a channel: convert it to 8 bits");
    int width, height, channels;
    uint8_t* data = stbi_load(path.c_str(), &width, &height, &channels, 3);
    if (!data) throw std::runtime_error(std::string("not a JPEG or PNG, or damaged: ") + stbi_failure_reason());
    Image image{height, width, 3, {data, data + size_t(height) * width * 3}};
    stbi_image_free(data);
    return image;
}

inline Image read_image(const std::string& path) {
    FILE* file = std::fopen(path.c_str(), "rb");
    if (!file) throw std::runtime_error("cannot be opened");
    const bool is_jpeg = std::fgetc(file) == 0xFF && std::fgetc(file) == 0xD8;
    std::rewind(file);
    Image image;
    try {
        if (is_jpeg) {
            const int orientation = read_jpeg(file, image);
            image = turn_upright(image, orientation);
        } else {
            image = read_png(path);
        }
    } catch (...) {
        std::fclose(file);
        throw;
    }
    std::fclose(file);
    return image;
}

// RGB to 8-bit grey, with the weights and the rounding of Pillow (ITU-R 601-2 luma).
inline Image to_grey(const Image& image) {
    Image grey{image.height, image.width, 1, {}};
    for (size_t i = 0; i < image.bytes.size(); i += 3) {
        const uint8_t* rgb = &image.bytes[i];
        grey.bytes.push_back(uint8_t((rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >> 16));
    }
    return grey;
}
