// Builds the plans of the candidate graph for a GPU that is described, not there: plans DESCRIPTION.json <
// LINES
//
// A line is a call, whose numbers are those of Fused: step images channels filters H W OH OW KH KW SH SW PH
// PW DH DW dtype out_dtype alpha bias power b_minus_1 cos_eps, with cuDNN's numbers of dtypes. Answers with a
// line for each: "built SECONDS WORKSPACE BYTES", or "refused REASON".
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>

#include "common/cuda/cudnn/plan.h"
#include "transform/cuda/graphs.h"

namespace {

using namespace bcos;

transform::cuda::Fused read(std::istream& in) {
  transform::cuda::Fused f{};
  int step, dtype, out, power;
  auto& w = f.window;
  in >> step >> f.images >> f.channels >> f.filters >> w.H >> w.W >> w.OH >> w.OW >> w.KH >> w.KW >> w.SH >>
      w.SW >> w.PH >> w.PW >> w.DH >> w.DW >> dtype >> out >> f.alpha >> f.bias >> power >> f.b_minus_1 >>
      f.cos_eps;
  f.step = transform::cuda::Step(step);
  f.dtype = f.bias_dtype = cudnn::DataType(dtype);
  f.out_dtype = cudnn::DataType(out);
  f.power = transform::Power(power);
  return f;
}

std::string answer(const transform::cuda::Fused& call, const cudnn::Device& device) {
  const auto start = std::chrono::steady_clock::now();
  const auto graph = transform::cuda::graph_of(call);
  std::ostringstream out;
  try {
    const auto plan = cudnn::Plan::build(graph, device);
    const auto json = plan.json();
    const std::chrono::duration<double> built = std::chrono::steady_clock::now() - start;
    cudnn::Plan::restore(graph, device, json);
    out << "built " << built.count() << ' ' << plan.workspace() << ' ' << json.size();
  } catch (const cudnn::Error& error) {
    std::string said = error.what();
    std::replace(said.begin(), said.end(), '\n', ' ');
    out << "refused " << said;
  }
  return out.str();
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) return std::fprintf(stderr, "plans DESCRIPTION.json < LINES\n"), 2;
  std::ifstream file(arguments[1]);
  std::string json((std::istreambuf_iterator<char>(file)), {});
  json.erase(json.find_last_not_of(" \n") + 1);
  try {
    const cudnn::Device device(json);
    std::printf("cudnn %zu\n", cudnn::version());
    for (std::string line; std::getline(std::cin, line);) {
      std::istringstream in(line);
      const auto call = read(in);
      if (!in) return std::fprintf(stderr, "not a call: %s\n", line.c_str()), 2;
      const auto reason = transform::cuda::why_not(call);
      std::printf("%s\n", reason.empty() ? answer(call, device).c_str() : ("refused " + reason).c_str());
      std::fflush(stdout);
    }
  } catch (const cudnn::Error& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  }
}
