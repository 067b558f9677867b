import Foundation
import Platform

/// How long each step of something took, for the log: "volumes 12, QEMU 310, worker 40 ms".
struct StepTimes {
    private let begin = MonotonicTime.now
    private var last = MonotonicTime.now
    private var parts: [String] = []

    mutating func mark(_ step: String) {
        let now = MonotonicTime.now
        parts.append(String(format: "%@ %.0f", step, now.milliseconds(since: last)))
        last = now
    }

    var text: String { parts.joined(separator: ", ") + String(format: " ms (%.0f)", last.milliseconds(since: begin)) }
}
