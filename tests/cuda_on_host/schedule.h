// Which thread runs next: INSTRUCTRL_HOST_SCHEDULE. See cuda_on_host.h.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace cuda_on_host {

struct Schedule {
  enum class Kind { kRound, kRandom, kAhead } kind = Kind::kRound;
  unsigned number = 0;

  // Read at each launch, so that one process can try several.
  static Schedule from_environment() {
    const char* variable = std::getenv("INSTRUCTRL_HOST_SCHEDULE");
    const std::string text = variable == nullptr ? "round" : variable;
    Schedule schedule;
    char rest = 0;
    if (text == "round") return schedule;
    if (std::sscanf(text.c_str(), "random:%u%c", &schedule.number, &rest) == 1) {
      schedule.kind = Kind::kRandom;
    } else if (std::sscanf(text.c_str(), "ahead:%u%c", &schedule.number, &rest) == 1) {
      schedule.kind = Kind::kAhead;
    } else {
      throw std::runtime_error("INSTRUCTRL_HOST_SCHEDULE: found " + text +
                               ", accepted are round, random:SEED, ahead:WARP");
    }
    return schedule;
  }
};

}  // namespace cuda_on_host
