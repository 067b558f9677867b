import Configuration
import ControlProtocol
import Foundation
import Libvirt
import Platform
import Replication

/// Which engine captures a guest's epochs, and why.
public struct EngineDecision: Sendable {
    /// What `protect` takes without `--interval` when passes make the epochs.
    static let periodicIntervalMs = 30_000.0

    let engine: Engine
    let reason: String

    func defaultIntervalMs(_ configuration: ServiceConfiguration) -> Double {
        engine == .continuous ? Double(configuration.intervalMs) : Self.periodicIntervalMs
    }

    /// Chooses for a running guest. Throws what stands against the engine that was asked for, or against both.
    static func make(_ choice: EngineChoice, _ domain: Domain, _ definition: DomainDefinition, pid: pid_t?) throws -> EngineDecision {
        switch choice {
        case .continuous:
            if let obstacle = try continuousObstacle(domain, definition) { throw ControlFailure(obstacle.message, advice: "\(obstacle.advice), or use `--engine periodic`") }
            return EngineDecision(engine: .continuous, reason: "as ordered")
        case .periodic:
            if let obstacle = try periodicObstacle(domain, pid) { throw obstacle }
            return EngineDecision(engine: .periodic, reason: "as ordered")
        case .auto:
            guard let obstacle = try continuousObstacle(domain, definition) else { return EngineDecision(engine: .continuous, reason: "guest and QEMU can") }
            if let second = try periodicObstacle(domain, pid) {
                throw ControlFailure("\(obstacle.message); and \(second.message)", advice: "\(obstacle.advice), or: \(second.advice)")
            }
            return EngineDecision(engine: .periodic, reason: obstacle.message)
        }
    }

    /// Throws when the interval is not one of the engine's.
    func check(intervalMs: Double?) throws {
        guard let intervalMs else { return }
        let range = engine == .continuous ? Interval.continuousRangeMs : Interval.periodicRangeMs
        guard !range.contains(intervalMs) else { return }
        throw ControlFailure("An interval of \(intervalMs / 1000) s is nothing for the engine \(engine.rawValue) (\(reason))",
                             advice: engine == .continuous ? "Use 5ms to 60s" : "Use 1s to 1h")
    }

    // MARK: What stands against an engine, each with a way out

    static func continuousObstacle(_ domain: Domain, _ definition: DomainDefinition) throws -> ControlFailure? {
        guard definition.type == "kvm" else {
            return ControlFailure("the guest runs under TCG (type='\(definition.type)'), where COLO would deadlock its QEMU", advice: "Use <domain type='kvm'>")
        }
        let version = try domain.monitor(QueryVersion()).version
        if entersNoCOLO(version) {
            return ControlFailure("QEMU \(version) does not enter COLO (fixed in 10.0.7 and 10.2)", advice: "Update QEMU and restart the guest")
        }
        guard try domain.monitor(QueryMigrateCapabilities()).contains(where: { $0.capability == "x-colo" }) else {
            return ControlFailure("this QEMU has no x-colo capability: it was built without replication",
                                  advice: "RHEL's builds lack it; Debian's, Ubuntu's and Fedora's have it")
        }
        return nil
    }

    /// QEMU 10.0.0 to 10.0.6 and 10.1: the migration ends instead, with the guest stopped.
    static func entersNoCOLO(_ version: Version) -> Bool {
        (version >= Version(10, 0, 0) && version < Version(10, 0, 7)) || (version >= Version(10, 1, 0) && version < Version(10, 2, 0))
    }

    static func periodicObstacle(_ domain: Domain, _ pid: pid_t?) throws -> ControlFailure? {
        guard try domain.monitor(QueryMigrateCapabilities()).contains(where: { $0.capability == "background-snapshot" }) else {
            return ControlFailure("this QEMU has no background-snapshot capability", advice: "Use QEMU 6.0 or later, built for Linux")
        }
        guard let pid, let owner = try? LocalDomain.owner(of: pid), owner.user != 0 else { return nil }
        let allowed = (try? kernelText("/proc/sys/vm/unprivileged_userfaultfd"))?.trimmingCharacters(in: .whitespacesAndNewlines)
        guard allowed == "0" else { return nil }
        return ControlFailure("QEMU runs as user \(owner.user), who may not use userfaultfd, which background snapshots need",
                              advice: "Allow it: `sysctl -w vm.unprivileged_userfaultfd=1`, and in /etc/sysctl.d for the next boot")
    }
}
