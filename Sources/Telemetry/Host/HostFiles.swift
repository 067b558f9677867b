import Foundation
import Platform

/// The kernel's files below a folder that takes the place of `/`: the host itself, or a tree made for a test.
struct HostFiles: Sendable {
    let root: String

    /// `root`: empty for the host.
    init(root: String = "") { self.root = root }

    func text(_ path: String) -> String? { try? kernelText(root + path) }

    /// A file that holds one whole number.
    func count(_ path: String) -> UInt64? {
        text(path).flatMap { UInt64($0.trimmingCharacters(in: .whitespacesAndNewlines)) }
    }

    func number(_ path: String) -> Double? {
        text(path).flatMap { Double($0.trimmingCharacters(in: .whitespacesAndNewlines)) }
    }

    /// Entries of a folder that are `prefix` and a number, in their order; none when it is not there.
    func numbered(_ prefix: String, in folder: String) -> [String] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: root + folder)) ?? []
        return names.compactMap { name in name.hasPrefix(prefix) ? Int(name.dropFirst(prefix.count)).map { ($0, name) } : nil }
            .sorted { $0.0 < $1.0 }.map(\.1)
    }

    func exists(_ path: String) -> Bool { FileManager.default.fileExists(atPath: root + path) }
}
