#include "transform/glue/cuda/candidate.h"

#include <c10/util/StringUtil.h>

#include <algorithm>

namespace bcos::transform::glue::cuda {
namespace {

// In a function, because the files that fill the list are initialised in no particular order.
std::vector<Candidate>& list() {
  static std::vector<Candidate> candidates;
  return candidates;
}

}  // namespace

Registered::Registered(const Candidate& candidate) {
  list().push_back(candidate);
}

const std::vector<Candidate>& candidates() {
  return list();
}

void check_names(const std::vector<Candidate>& candidates) {
  for (auto i = candidates.begin(); i != candidates.end(); i++)
    for (auto j = candidates.begin(); j != i; j++)
      TORCH_CHECK(std::string(i->name) != j->name, "the candidate ", i->name, " is registered twice");
}

const Candidate& candidate_of(const std::string& name) {
  for (const auto& candidate : list())
    if (name == candidate.name) return candidate;
  TORCH_CHECK_VALUE(false, "candidate is '", name, "', allowed: ", c10::Join(", ", candidate_names()));
}

std::vector<std::string> candidate_names() {
  std::vector<std::string> names;
  for (const auto& candidate : list()) names.push_back(candidate.name);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace bcos::transform::glue::cuda
