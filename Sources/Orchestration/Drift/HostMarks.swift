import Configuration
import ControlProtocol
import Foundation
import Platform

/// Hosts that are not trusted at the moment, and guests that left one by themselves; below `STATE_DIRECTORY/host/`, over restarts.
public final class HostMarks: Sendable {
    struct Content: Codable, Equatable {
        var version = 1
        var suspects: [HostMark] = []
        /// The last automatic swap of a domain, by UUID, in seconds since 1970.
        var swaps: [String: Double] = [:]
        /// When an administrator last said that this host is in order, in seconds since 1970.
        var clearedAt = 0.0
    }

    private static let mostSuspects = 256, mostSwaps = 4096

    private let file: HostFile<Content>

    init(stateDirectory: String) {
        file = HostFile("marks.json", stateDirectory: stateDirectory, empty: Content(),
                        whenUnreadable: "No host counts as suspect until somebody marks it again")
    }

    private func read<R>(_ body: (Content) -> R) -> R { file.read(body) }

    private func change(_ body: (inout Content) -> Void) throws { try file.change(keeping: true, body) }

    // MARK: Suspects

    public var suspects: [HostMark] { read(\.suspects) }

    func suspicion(_ host: String) -> HostMark? { read { $0.suspects.first { HostName.isSame($0.host, host) } } }

    /// For placement: hosts that are out, and why.
    var exclusions: [String: String] { Dictionary(suspects.map { ($0.host, Self.text($0)) }, uniquingKeysWith: { first, _ in first }) }

    static func text(_ mark: HostMark) -> String { "It is suspect since \(mark.since): \(mark.reason) (`shadow-virt hosts clear \(mark.host)` ends that)" }

    /// What `protect` says to a host that is not trusted; nil: it is.
    func refusal(_ host: String) -> ControlFailure? {
        suspicion(host).map { ControlFailure("\($0.host) is suspect since \($0.since): \($0.reason)", advice: "Once it is in order: `shadow-virt hosts clear \($0.host)`") }
    }

    func suspect(_ host: String, _ reason: String) throws {
        try change { content in
            content.suspects.removeAll { HostName.isSame($0.host, host) }
            content.suspects.append(HostMark(host: host, reason: String(reason.prefix(400)), since: Timestamp.now))
            content.suspects = content.suspects.suffix(Self.mostSuspects)
        }
    }

    /// False: it was not suspect.
    @discardableResult
    func clear(_ host: String, isThisHost: Bool, now: Double) throws -> Bool {
        let was = suspicion(host) != nil
        try change { content in
            content.suspects.removeAll { HostName.isSame($0.host, host) }
            if isThisHost { content.clearedAt = now }
        }
        return was
    }

    var clearedAt: Double { read(\.clearedAt) }

    // MARK: Automatic swaps

    func lastSwap(_ uuid: String) -> Double? { read { $0.swaps[uuid] } }

    func noteSwap(_ uuid: String, _ now: Double) throws {
        try change { content in
            // What is older than an hour holds nothing up.
            content.swaps = content.swaps.filter { abs(now - $0.value) < WarmSwapLaw.secondsBetweenSwaps }
            if content.swaps.count < Self.mostSwaps { content.swaps[uuid] = now }
        }
    }

    func forgetSwap(_ uuid: String) throws { try change { $0.swaps[uuid] = nil } }
}
