// Run an artifact of the target tensorrt on images, without vitdeploy: run_tensorrt DIR IMAGE...
// NOT RUN: it compiles against the headers of TensorRT 10.3, 10.16 and 11.1, and never ran on a GPU.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <iterator>
#include <memory>

#include "answers.hpp"

namespace trt = nvinfer1;

class Logger : public trt::ILogger {
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kWARNING) std::fprintf(stderr, "TensorRT: %s\n", message);
    }
};

inline void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

class Stream {
public:
    Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    operator cudaStream_t() const { return stream_; }

private:
    cudaStream_t stream_{};
};

struct Tensor {  // an input or output on the GPU, and its shape
    std::string name;
    std::vector<int64_t> shape;
    size_t bytes;
    std::unique_ptr<void, decltype(&cudaFree)> memory;
};

inline size_t bytes_of(trt::DataType type, const std::string& name) {
    if (type == trt::DataType::kFLOAT) return 4;
    if (type == trt::DataType::kUINT8) return 1;
    throw std::runtime_error(name + " is neither float32 nor uint8");
}

inline std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + " cannot be opened");
    return {std::istreambuf_iterator<char>(file), {}};
}

int main(int count, char** arguments) try {
    if (count < 3) {
        std::fprintf(stderr, "usage: %s DIR IMAGE...\n", arguments[0]);
        return 2;
    }
    const Model model = read_model(arguments[1]);
    const std::string plan = read_file(model.file);
    Logger logger;
    std::unique_ptr<trt::IRuntime> runtime(trt::createInferRuntime(logger));
    if (!runtime) throw std::runtime_error("TensorRT does not start");
    std::unique_ptr<trt::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine) throw std::runtime_error(model.file + " is not for this TensorRT and this GPU: compile it here");
    std::unique_ptr<trt::IExecutionContext> context(engine->createExecutionContext());
    if (!context) throw std::runtime_error("no memory for an execution context");

    const Preprocess& p = model.preprocess;
    trt::Dims shape{};
    shape.nbDims = 4;
    const int sides[] = {model.batch, p.channels + p.mask, p.height, p.width};
    std::copy(sides, sides + 4, shape.d);
    if (!context->setInputShape(model.input.c_str(), shape)) throw std::runtime_error("the engine takes another shape");

    Stream stream;
    std::vector<Tensor> tensors;
    for (int i = 0; i < engine->getNbIOTensors(); i++) {
        const char* name = engine->getIOTensorName(i);
        const trt::Dims dims = context->getTensorShape(name);
        std::vector<int64_t> sizes(dims.d, dims.d + dims.nbDims);
        const size_t bytes = std::accumulate(sizes.begin(), sizes.end(), bytes_of(engine->getTensorDataType(name), name),
                                             std::multiplies<>());
        void* memory = nullptr;
        check(cudaMalloc(&memory, bytes));
        tensors.push_back({name, sizes, bytes, {memory, cudaFree}});
        context->setTensorAddress(name, memory);
    }

    return answer_images(model, count - 2, arguments + 2, [&](std::vector<uint8_t> input) {
        for (const Tensor& tensor : tensors)
            if (tensor.name == model.input) {
                if (tensor.bytes != input.size()) throw std::runtime_error("the engine takes an input of another size");
                check(cudaMemcpyAsync(tensor.memory.get(), input.data(), input.size(), cudaMemcpyHostToDevice, stream));
            }
        if (!context->enqueueV3(stream)) throw std::runtime_error("TensorRT does not run the engine");
        Outputs outputs;
        size_t index = 0;  // the engine may call its outputs otherwise than the manifest: they match by their order
        for (const Tensor& tensor : tensors) {
            if (tensor.name == model.input) continue;
            const std::string& name = model.outputs.at(index++);
            if (name != model.reading.scores && name != model.reading.boxes) continue;
            if (engine->getTensorDataType(tensor.name.c_str()) != trt::DataType::kFLOAT)
                throw std::runtime_error("output " + name + " is not float32");
            std::vector<float> values(tensor.bytes / sizeof(float));
            check(cudaMemcpyAsync(values.data(), tensor.memory.get(), tensor.bytes, cudaMemcpyDeviceToHost, stream));
            check(cudaStreamSynchronize(stream));
            outputs[name] = first_of_batch(tensor.shape, values.data());
        }
        return outputs;
    });
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
