// What manifest.json says about a model: its file, its preprocessing, its post-processing and its labels.
#pragma once

#include <array>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

struct Preprocess {  // the fields of `preprocess`: vitdeploy/recipe/preprocess.py explains each
    int height, width, channels, divisor;
    std::vector<double> mean, std;
    std::vector<int> fill;
    std::string interpolation, resize, rounding, crop_rounding, padding, order;
    std::array<int, 2> resize_to{};  // 0, 0: size / crop_pct
    int shortest_edge, longest_edge; // 0: not given
    double crop_pct;
    bool antialias, enlarge, mask;
};

struct PostProcessing {  // the fields of `usage.post_processing`: vitdeploy/evidence/reading.py explains each
    std::string scores, boxes;
    bool sigmoid, every_class, transposed_boxes;
    int no_object, top_k;  // no_object: -1 if there is none
    double threshold;
};

struct Model {
    std::string file, input, form;   // form: "normalized", "pixels" or "uint8"
    std::vector<std::string> outputs;  // in the engine's order
    int batch;                       // how many images run together; the example repeats one image
    Preprocess preprocess;
    PostProcessing reading;
    std::vector<std::string> labels;

    std::string label(int index) const {
        return index < int(labels.size()) ? labels[index] : std::to_string(index);
    }
};

inline Model read_model(const std::string& folder) {
    std::ifstream file(folder + "/manifest.json");
    if (!file) throw std::runtime_error(folder + "/manifest.json cannot be opened");
    const auto manifest = nlohmann::json::parse(file);
    const auto& usage = manifest.at("usage");
    if (manifest.at("runs").is_null()) throw std::runtime_error(folder + " is a bundle: run vitdeploy compile first");
    if (!usage.contains("post_processing") || usage["post_processing"].is_null())
        throw std::runtime_error("this example reads classes and boxes, and the model has another task (or the "
                                 "manifest is from before post-processing was in it)");
    if (usage.at("inputs").size() != 1 || usage["inputs"][0].at("shape").size() != 4)
        throw std::runtime_error("this example feeds images only");

    const auto& p = manifest.at("preprocess");
    auto text = [&](const char* key) { return p.at(key).get<std::string>(); };
    auto edge = [&](const char* key) { return p.at(key).is_null() ? 0 : p.at(key).get<int>(); };
    Preprocess preprocess{
        p.at("size")[0], p.at("size")[1], p.at("channels"), p.at("size_divisor"), p.at("mean"), p.at("std"), {},
        text("interpolation"), text("resize"), text("size_rounding"), text("crop_rounding"), text("padding"),
        text("channel_order"), {}, edge("shortest_edge"), edge("longest_edge"), p.at("crop_pct"), p.at("antialias"),
        p.at("enlarge"), p.at("mask")};
    if (!p.at("resize_to").is_null()) preprocess.resize_to = p.at("resize_to").get<std::array<int, 2>>();
    if (!p.at("fill").is_null()) preprocess.fill = p.at("fill").get<std::vector<int>>();

    const auto& r = usage["post_processing"];
    PostProcessing reading{
        r.at("scores"), r.at("boxes").is_null() ? "" : r.at("boxes").get<std::string>(),
        r.at("activation") == "sigmoid", r.at("candidates") == "every class", r.at("boxes_layout") == "4, queries",
        r.at("no_object").is_null() ? -1 : r.at("no_object").get<int>(), r.at("top_k"), r.at("threshold")};

    Model model{folder + "/" + manifest.at("runs").get<std::string>(), usage.at("inputs")[0].at("name"),
                manifest.at("recipe").at("target").at("input"), {},
                manifest.at("recipe").at("target").at("batch").at("min"), preprocess, reading, {}};
    for (const auto& output : usage.at("outputs")) model.outputs.push_back(output.at("name"));
    if (!manifest.at("labels").is_null()) model.labels = manifest.at("labels").get<std::vector<std::string>>();
    return model;
}
