// From the outputs to classes or boxes, as `usage.post_processing` of the manifest says.
#pragma once

#include <cstdio>
#include <map>
#include <numeric>

#include "preprocess.hpp"

struct Output {  // of the first image of a batch: `shape` without the batch
    std::vector<int64_t> shape;
    std::vector<float> values;
};
using Outputs = std::map<std::string, Output>;

inline void activate(std::vector<double>& scores, bool sigmoid) {
    if (sigmoid) {
        for (double& x : scores) x = 1 / (1 + std::exp(-x));
        return;
    }
    const double highest = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (double& x : scores) sum += x = std::exp(x - highest);
    for (double& x : scores) x /= sum;
}

// The indices of the `count` highest values, highest first. Of equal values the lower index comes first.
inline std::vector<size_t> rank(const std::vector<double>& values, int count) {
    std::vector<size_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] > values[b]; });
    order.resize(std::min(order.size(), size_t(count)));
    return order;
}

// One line for each class: probability, index, label.
inline void print_classes(const Model& model, const Outputs& outputs) {
    const Output& output = outputs.at(model.reading.scores);
    std::vector<double> scores(output.values.begin(), output.values.end());
    const auto [least, most] = std::minmax_element(scores.begin(), scores.end());
    const bool are_probabilities = *least >= 0 && *most <= 1 &&
                                   std::abs(std::accumulate(scores.begin(), scores.end(), 0.0) - 1) <= 0.1;
    if (!are_probabilities) activate(scores, model.reading.sigmoid);
    for (size_t index : rank(scores, model.reading.top_k))
        std::printf("  %.6f  %zu  %s\n", scores[index], index, model.label(int(index)).c_str());
}

// One line for each box: score; left, top, right and bottom in pixels of the image; index of the class, label.
inline void print_boxes(const Model& model, const Outputs& outputs, int height, int width) {
    const PostProcessing& reading = model.reading;
    const Output &scores = outputs.at(reading.scores), &boxes = outputs.at(reading.boxes);
    const size_t queries = scores.shape.at(0), classes = scores.shape.at(1);
    std::vector<double> candidates;  // the probability of each, and the query and class that it is of
    std::vector<std::pair<size_t, int>> origins;
    for (size_t q = 0; q < queries; q++) {
        std::vector<double> row(scores.values.begin() + q * classes, scores.values.begin() + (q + 1) * classes);
        activate(row, reading.sigmoid);
        if (reading.no_object >= 0) row.erase(row.begin() + reading.no_object);
        if (reading.every_class) {
            for (size_t c = 0; c < row.size(); c++) origins.push_back({q, int(c)});
            candidates.insert(candidates.end(), row.begin(), row.end());
        } else {
            const auto best = std::max_element(row.begin(), row.end());
            origins.push_back({q, int(best - row.begin())});
            candidates.push_back(*best);
        }
    }
    const Preprocess& p = model.preprocess;
    const Place place = find_place(height, width, p);
    const double y_scale = double(height) / place.height, x_scale = double(width) / place.width;
    for (size_t index : rank(candidates, reading.top_k)) {
        if (candidates[index] < reading.threshold) break;
        const auto [query, label] = origins[index];
        double box[4];  // centre x, centre y, width, height, as shares of the input
        for (int i = 0; i < 4; i++)
            box[i] = boxes.values[reading.transposed_boxes ? i * queries + query : query * 4 + i];
        auto x = [&](double share) { return (place.left + share * p.width) * x_scale; };
        auto y = [&](double share) { return (place.top + share * p.height) * y_scale; };
        std::printf("  %.6f  %.2f %.2f %.2f %.2f  %d  %s\n", candidates[index], x(box[0] - box[2] / 2),
                    y(box[1] - box[3] / 2), x(box[0] + box[2] / 2), y(box[1] + box[3] / 2), label,
                    model.label(label).c_str());
    }
}

// Run each image and print its answer. `run` takes the raw input of a batch and returns the outputs.
// A damaged image is named, and the others are answered; the exit code is then 1.
template <class Run> int answer_images(const Model& model, int count, char** paths, Run run) {
    int exit_code = 0;
    for (int i = 0; i < count; i++) {
        try {
            const Image image = read_image(paths[i]);
            const Outputs outputs = run(to_input(to_planes(image, model.preprocess), model));
            std::printf("%s\n", paths[i]);
            if (model.reading.boxes.empty()) print_classes(model, outputs);
            else print_boxes(model, outputs, image.height, image.width);
        } catch (const std::exception& error) {
            std::fprintf(stderr, "%s: %s\n", paths[i], error.what());
            exit_code = 1;
        }
    }
    return exit_code;
}

// Outputs of a batch -> those of its first image.
inline Output first_of_batch(std::vector<int64_t> shape, const float* values) {
    shape.erase(shape.begin());
    const auto size = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    return {shape, {values, values + size}};
}
