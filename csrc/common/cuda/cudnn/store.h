// Built plans on disk. They hold machine code, so that only files which nobody else can have written are
// read.
#pragma once

#include <optional>
#include <string>

namespace bcos::cudnn {

// Files in one folder, which is made with mode 0700 when the first is written. A folder or a file that
// another user owns or that others can write is left alone, as if it were not there.
class Store {
 public:
  explicit Store(std::string folder) : folder_(std::move(folder)) {}  // empty: nothing is kept

  // Whether the folder is there and may be read.
  bool exists() const;

  // What was written under this key; none where there is nothing, or a file that is cut short, of another key
  // or not one of ours.
  std::optional<std::string> read(const std::string& key) const;

  // Replaces the file in one step; where that is not possible, nothing is kept.
  void write(const std::string& key, const std::string& content) const;

 private:
  std::string folder_;
};

}  // namespace bcos::cudnn
