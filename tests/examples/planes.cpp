// Print what the C++ example feeds for an image, before normalization: planes DIR IMAGE
#include "preprocess.hpp"

int main(int, char** arguments) {
    const auto planes = to_planes(read_image(arguments[2]), read_model(arguments[1]).preprocess);
    return std::fwrite(planes.data(), 1, planes.size(), stdout) == planes.size() ? 0 : 1;
}
