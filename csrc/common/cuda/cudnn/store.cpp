#include "common/cuda/cudnn/store.h"

#if !defined(_WIN32)
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#endif

namespace bcos::cudnn {

#if defined(_WIN32)

bool Store::exists() const {
  return false;
}

std::optional<std::string> Store::read(const std::string&) const {
  return std::nullopt;
}

void Store::write(const std::string&, const std::string&) const {}

#else

namespace {

constexpr const char* kTitle = "bcos_kernels plan 2\n";
constexpr off_t kLargest = 64 << 20;  // bytes of a file

// An open file or folder, closed with this object.
struct Open {
  int descriptor;
  explicit Open(int descriptor) : descriptor(descriptor) {}
  Open(const Open&) = delete;
  ~Open() {
    if (descriptor >= 0) close(descriptor);
  }
  bool is_there() const { return descriptor >= 0; }
};

// FNV-1a of 64 bits, in hexadecimal.
std::string digest(const std::string& text) {
  uint64_t value = 14695981039346656037u;
  for (const unsigned char c : text) value = (value ^ c) * 1099511628211u;
  char out[17];
  std::snprintf(out, sizeof(out), "%016llx", static_cast<unsigned long long>(value));
  return out;
}

// Whether it is of this type, belongs to this user, and nobody else can write it.
bool is_private(int descriptor, mode_t type, off_t* size = nullptr) {
  struct stat facts;
  if (fstat(descriptor, &facts) != 0) return false;
  if (size != nullptr) *size = facts.st_size;
  return (facts.st_mode & S_IFMT) == type && facts.st_uid == geteuid() &&
         (facts.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

// The folder, where it is there and nobody else can write it.
struct Folder : Open {
  explicit Folder(const std::string& path)
      : Open(path.empty() ? -1 : open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)),
        usable(is_there() && is_private(descriptor, S_IFDIR)) {}
  bool usable;
};

std::string head(const std::string& key, const std::string& content) {
  return kTitle + key + "\n" + std::to_string(content.size()) + " " + digest(content) + "\n";
}

bool write_all(int descriptor, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t written = ::write(descriptor, text.data() + done, text.size() - done);
    if (written <= 0) return false;
    done += size_t(written);
  }
  return true;
}

}  // namespace

bool Store::exists() const {
  return Folder(folder_).usable;
}

std::optional<std::string> Store::read(const std::string& key) const {
  const Folder folder(folder_);
  if (!folder.usable) return std::nullopt;
  const Open file(
      openat(folder.descriptor, digest(key).c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  off_t size = 0;
  if (!file.is_there() || !is_private(file.descriptor, S_IFREG, &size) || size > kLargest)
    return std::nullopt;
  std::string text(size_t(size), '\0');
  size_t filled = 0;
  while (filled < text.size()) {
    const ssize_t got = ::read(file.descriptor, text.data() + filled, text.size() - filled);
    if (got <= 0) return std::nullopt;
    filled += size_t(got);
  }
  const std::string start = kTitle + key + "\n";
  if (text.compare(0, start.size(), start) != 0) return std::nullopt;
  const size_t line = text.find('\n', start.size());
  if (line == std::string::npos) return std::nullopt;
  const auto content = text.substr(line + 1);
  return text.compare(0, line + 1, head(key, content)) == 0 ? std::optional(content) : std::nullopt;
}

void Store::write(const std::string& key, const std::string& content) const {
  if (folder_.empty()) return;
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(folder_).parent_path(), ignored);
  mkdir(folder_.c_str(), S_IRWXU);
  const Folder folder(folder_);
  if (!folder.usable) return;
  const auto name = digest(key), draft = name + "." + std::to_string(getpid());
  bool complete = false;
  {
    const Open file(openat(folder.descriptor, draft.c_str(),
                           O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, S_IRUSR | S_IWUSR));
    if (!file.is_there()) return;
    complete = write_all(file.descriptor, head(key, content) + content);
  }
  if (!complete || renameat(folder.descriptor, draft.c_str(), folder.descriptor, name.c_str()) != 0)
    unlinkat(folder.descriptor, draft.c_str(), 0);
}

#endif

}  // namespace bcos::cudnn
