// Run an artifact of the target onnxruntime on images, without vitdeploy: run_onnxruntime DIR IMAGE...
#include <onnxruntime_cxx_api.h>

#include "answers.hpp"

int main(int count, char** arguments) try {
    if (count < 3) {
        std::fprintf(stderr, "usage: %s DIR IMAGE...\n", arguments[0]);
        return 2;
    }
    const Model model = read_model(arguments[1]);
    Ort::Env env(ORT_LOGGING_LEVEL_FATAL);
    Ort::Session session(env, model.file.c_str(), Ort::SessionOptions{});
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const Preprocess& p = model.preprocess;
    const std::array<int64_t, 4> shape{model.batch, p.channels + p.mask, p.height, p.width};

    // The engine may call its outputs otherwise than the manifest: they match by their order.
    Ort::AllocatorWithDefaultOptions allocator;
    std::vector<Ort::AllocatedStringPtr> owned;
    std::vector<const char*> names;
    for (size_t i = 0; i < session.GetOutputCount(); i++) {
        owned.push_back(session.GetOutputNameAllocated(i, allocator));
        names.push_back(owned.back().get());
    }
    if (names.size() != model.outputs.size()) throw std::runtime_error("the model and its manifest do not fit");

    return answer_images(model, count - 2, arguments + 2, [&](std::vector<uint8_t> input) {
        const auto type =
            model.form == "uint8" ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
        const auto tensor =
            Ort::Value::CreateTensor(memory, input.data(), input.size(), shape.data(), shape.size(), type);
        const char* name = model.input.c_str();
        const auto results = session.Run(Ort::RunOptions{}, &name, &tensor, 1, names.data(), names.size());
        Outputs outputs;
        for (size_t i = 0; i < results.size(); i++) {
            const auto info = results[i].GetTensorTypeAndShapeInfo();
            if (model.outputs[i] != model.reading.scores && model.outputs[i] != model.reading.boxes) continue;
            if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
                throw std::runtime_error("output " + model.outputs[i] + " is not float32");
            outputs[model.outputs[i]] = first_of_batch(info.GetShape(), results[i].GetTensorData<float>());
        }
        return outputs;
    });
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
