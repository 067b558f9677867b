import ControlProtocol
import Foundation
import Platform

/// A guest has fewer shadows than its policy asks for.
struct Shortage: Sendable {
    var wanted: Int
    var present: Int
    /// Why the rest is not there yet; it may change from one attempt to the next.
    var reason: String
    /// ISO 8601 UTC.
    var since = Timestamp.now

    /// What is told once, however often it is tried: reasons hold figures that are others each time.
    func isSame(as other: Shortage) -> Bool { wanted == other.wanted && present == other.present }

    var text: String { "It has \(present) of the \(wanted) shadows that its policy asks for: \(reason)" }
}

extension EventKind {
    /// A guest has fewer shadows than its policy asks for; one of those is on its way.
    static let shadowMissing: EventKind = "shadow_missing", shadowAdded: EventKind = "shadow_added"
}

/// How long to wait before something is tried again.
enum Backoff {
    static let firstMs = 1000.0, longestMs = 300_000.0
    /// Many guests that lost their shadows with one host must not all ask the others in the same moment.
    private static let jitter = 0.8...1.2

    /// Milliseconds, after so many attempts that failed: 1, 2, 4 ... 300 s, a fifth more or less.
    static func pauseMs(afterFailures count: Int, factor: Double = Double.random(in: jitter)) -> Double {
        factor * min(longestMs, firstMs * pow(2, Double(max(0, min(count - 1, 9)))))
    }
}
