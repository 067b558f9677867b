import ControlProtocol
import Foundation
import Libvirt
import Platform

/// Empties this host for maintenance: shadows that it holds are made elsewhere, guests go one after the other, small ones first: they are safe soonest,
/// and each that goes leaves room and bandwidth to the large ones. A guest with a shadow is swapped, one without is moved by live migration to where
/// placement would have its shadow.
public struct Drain {
    /// Says something once, for the person who waits.
    public typealias Notice = @Sendable (String) -> Void

    let registry: Registry
    let isCancelled: @Sendable () -> Bool
    let notice: Notice
    private var environment: HostEnvironment { registry.environment }
    private static let settleMs = 60_000.0
    private static let swapMs = 300_000.0

    public init(_ registry: Registry, isCancelled: @escaping @Sendable () -> Bool, notice: @escaping Notice) {
        (self.registry, self.isCancelled, self.notice) = (registry, isCancelled, notice)
    }

    /// A guest that runs here.
    private struct Guest {
        var uuid: String
        var name: String
        var memoryBytes: UInt64
    }

    public func run(dryRun: Bool) throws -> DrainReport {
        if !dryRun { try mark() }
        var steps = registry.waitingShadows.sorted { $0.name < $1.name }.map { leave($0, dryRun: dryRun) }
        let guests = try guests()
        for (index, guest) in guests.enumerated() {
            if isCancelled() {
                return DrainReport(host: environment.hostName, isDraining: registry.isDraining, wasCancelled: true,
                                   steps: steps + guests[index...].map { .init($0.name, .primary, .notTried, detail: "The drain was ended before; running it again goes on here") })
            }
            let step = move(guest, dryRun: dryRun)
            if !dryRun { notice("\(guest.name): \(step.detail) (\(index + 1) of \(guests.count))") }
            steps.append(step)
        }
        return DrainReport(host: environment.hostName, isDraining: registry.isDraining, steps: steps)
    }

    private func mark() throws {
        var record = registry.drains.read() ?? DrainStore.Record(isDraining: true, since: Timestamp.now, moved: [])
        if !record.isDraining { (record.isDraining, record.since) = (true, Timestamp.now) }
        try registry.drains.write(record)
        Log.info("\(environment.hostName) is being drained: it takes no shadows until `shadow-virt undrain`")
    }

    /// Smallest first.
    private func guests() throws -> [Guest] {
        try environment.connect().domains(.active).compactMap { domain in
            if let shadow = registry.shadow(domain.uuid), shadow.phase != .running { return nil }
            let bytes = (try? DomainDefinition(xml: domain.xml()).memoryBytes) ?? 0
            return Guest(uuid: domain.uuid, name: domain.name, memoryBytes: bytes)
        }.sorted { ($0.memoryBytes, $0.name) < ($1.memoryBytes, $1.name) }
    }

    // MARK: Shadows

    private func leave(_ shadow: ShadowProtection, dryRun: Bool) -> DrainReport.Step {
        guard !dryRun else { return .init(shadow.name, .shadow, .planned, host: shadow.primary, detail: "\(shadow.primary) would be asked to have its shadow elsewhere") }
        do {
            let peer = try environment.peer(shadow.primary)
            let answer = try environment.client(of: peer).ask(PeerRequest(.leave, host: environment.hostName, uuid: shadow.uuid, domain: shadow.name), timeoutMs: 20_000)
            return .init(shadow.name, .shadow, .replaced, host: answer.state, detail: "\(peer.name) makes its shadow on \(answer.state ?? "another host")")
        } catch {
            return .init(shadow.name, .shadow, .failed, host: shadow.primary, detail: "Its shadow stays here: \(error)")
        }
    }

    // MARK: Guests

    private func move(_ guest: Guest, dryRun: Bool) -> DrainReport.Step {
        do {
            guard let protection = registry.primary(guest.uuid), protection.board.state != .failedOver else { return try migrate(guest, dryRun: dryRun) }
            guard !dryRun else {
                let isOne = protection.slots.count == 1
                return .init(guest.name, .primary, .planned, host: protection.peerName, detail: "Would be swapped to \(isOne ? "" : "the freshest of ")\(protection.peerName)")
            }
            return try swap(guest, protection)
        } catch {
            return .init(guest.name, .primary, .failed, detail: "It stays: \(error)")
        }
    }

    private func swap(_ guest: Guest, _ protection: PrimaryProtection) throws -> DrainReport.Step {
        notice("\(guest.name): swapping to \(protection.slots.count == 1 ? "" : "the freshest of ")\(protection.peerName)")
        let state = protection.board.wait(for: [.protected, .suspended], until: MonotonicTime.now.adding(milliseconds: Self.settleMs))
        guard state == .protected else {
            let now = protection.board.current
            throw ControlFailure("it is \(now.state.rawValue)" + (now.reason.isEmpty ? "" : " (\(now.reason))"))
        }
        let report = try registry.swap(guest.uuid, deadline: MonotonicTime.now.adding(milliseconds: Self.swapMs))
        remember(guest, host: report.to, .swapped)
        return .init(guest.name, .primary, .moved, host: report.to, detail: "swapped to \(report.to), outage \(Int(report.outageMs.rounded())) ms")
    }

    private func migrate(_ guest: Guest, dryRun: Bool) throws -> DrainReport.Step {
        let domain = try environment.connect().lookup(uuid: guest.uuid)
        let policy = try PolicyStore(domain: domain).read() ?? DomainPolicy()
        let host = try Placement(environment: environment).choose(domain, policy: policy, ProtectRequest(policy))
        guard !dryRun else { return .init(guest.name, .primary, .planned, host: host, detail: "Has no shadow: would be moved to \(host) by live migration") }
        notice("\(guest.name): has no shadow; moving to \(host) by live migration")
        registry.keeper.hold(guest.uuid)
        defer { registry.keeper.release(guest.uuid) }
        let answer = try registry.migrate(guest.uuid, to: host, MigrationOptions(), pool: policy.pool, discardStale: false, onBegin: { _ in }, progress: { _ in })
        remember(guest, host: host, .migrated)
        guard case .moved(let report) = answer else { throw ControlFailure("libvirt predicted where it was to move") }
        return .init(guest.name, .primary, .moved, host: host, detail: "moved to \(host) by live migration, downtime \(report.downtimeMs.map { "\(Int($0)) ms" } ?? "unknown")")
    }

    /// It has gone, whether that can be kept or not.
    private func remember(_ guest: Guest, host: String, _ way: DrainStore.Record.Way) {
        var record = registry.drains.read() ?? DrainStore.Record(isDraining: true, since: Timestamp.now, moved: [])
        record.moved.removeAll { $0.uuid == guest.uuid }
        record.moved.append(.init(uuid: guest.uuid, domain: guest.name, host: host, way: way))
        do { try registry.drains.write(record) } catch {
            Log.error("\(guest.name) went to \(host), which cannot be noted: \(error). `undrain` will not bring it back; run `shadow-virt swap \(guest.name)` there")
        }
    }
}
