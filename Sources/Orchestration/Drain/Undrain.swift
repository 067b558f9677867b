import ControlProtocol
import Foundation
import Glibc
import Libvirt
import Platform

/// Ends a drain: this host takes shadows again at once, then the guests that left come back, in the order in which they went. What could not be brought
/// back stays on the list; repeating it tries these again.
public struct Undrain {
    let registry: Registry
    let isCancelled: @Sendable () -> Bool
    let notice: Drain.Notice
    private var environment: HostEnvironment { registry.environment }
    private static let pollMs: UInt32 = 500
    /// A host that does not answer for so long is given up.
    private static let silenceMs = 30_000.0

    public init(_ registry: Registry, isCancelled: @escaping @Sendable () -> Bool, notice: @escaping Drain.Notice) {
        (self.registry, self.isCancelled, self.notice) = (registry, isCancelled, notice)
    }

    public func run(dryRun: Bool) throws -> DrainReport {
        guard var record = registry.drains.read() else { return DrainReport(host: environment.hostName, isDraining: false, steps: []) }
        guard !dryRun else {
            return DrainReport(host: environment.hostName, isDraining: record.isDraining,
                               steps: record.moved.map { .init($0.domain, .primary, .planned, host: $0.host, detail: "Would be brought back from \($0.host)") })
        }
        if record.isDraining { Log.info("\(environment.hostName) is drained no more: it takes shadows again") }
        record.isDraining = false
        try registry.drains.write(record)
        registry.announce()
        var steps: [DrainReport.Step] = []
        for (index, guest) in record.moved.enumerated() {
            if isCancelled() {
                steps += record.moved[index...].map { .init($0.domain, .primary, .notTried, host: $0.host, detail: "It was ended before; running it again goes on here") }
                return DrainReport(host: environment.hostName, isDraining: false, wasCancelled: true, steps: steps)
            }
            let step = bringBack(guest)
            notice("\(guest.domain): \(step.detail) (\(index + 1) of \(record.moved.count))")
            steps.append(step)
            guard step.result == .moved, var now = registry.drains.read() else { continue }
            now.moved.removeAll { $0.uuid == guest.uuid }
            try registry.drains.write(now)
        }
        return DrainReport(host: environment.hostName, isDraining: false, steps: steps)
    }

    private func bringBack(_ guest: DrainStore.Record.Moved) -> DrainReport.Step {
        do {
            if isHere(guest.uuid) { return .init(guest.domain, .primary, .moved, host: environment.hostName, detail: "is here already") }
            let host = try find(guest)
            notice("\(guest.domain): asking \(host) for it")
            return .init(guest.domain, .primary, .moved, host: host, detail: try wait(for: guest, from: host))
        } catch {
            return .init(guest.domain, .primary, .failed, host: guest.host, detail: "It stays: \(error)")
        }
    }

    private func isHere(_ uuid: String) -> Bool {
        if let shadow = registry.shadow(uuid), shadow.phase != .running { return false }
        return (try? environment.connect().lookup(uuid: uuid).isActive()) == true
    }

    /// Where it runs now: perhaps it went on from where it went.
    private func find(_ guest: DrainStore.Record.Moved) throws -> String {
        var reasons: [String] = []
        let names = [guest.host] + environment.configuration.peers.map(\.name).filter { $0 != guest.host }
        for name in names {
            do {
                let answer = try environment.client(of: environment.peer(name)).ask(PeerRequest(.holds, host: environment.hostName, uuid: guest.uuid))
                if answer.isLive == true { return name }
            } catch {
                reasons.append("\(error)")
            }
        }
        throw ControlFailure("\(guest.domain) runs on no host that answers" + (reasons.isEmpty ? "" : " (\(reasons.joined(separator: "; ")))"), advice: "Start it where it is defined, then try again")
    }

    private func wait(for guest: DrainStore.Record.Moved, from host: String) throws -> String {
        let client = environment.client(of: try environment.peer(host))
        var heard = MonotonicTime.now
        var last = ""
        while true {
            do {
                let answer = try client.ask(PeerRequest(.sendBack, host: environment.hostName, uuid: guest.uuid, domain: guest.domain))
                heard = .now
                let text = answer.state ?? ""
                guard answer.isLive == true else { return text }
                if text != last { notice("\(guest.domain): \(text)") }
                last = text
            } catch let error as PeerUnreachable {
                guard MonotonicTime.now.milliseconds(since: heard) < Self.silenceMs else { throw error }
            }
            usleep(Self.pollMs * 1000)
        }
    }
}
