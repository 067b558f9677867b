import Configuration
import ControlProtocol
import Foundation
import Glibc
import Health
import Orchestration
import Platform

/// The control socket: one request a connection, progress at least every five seconds, then one answer. What was begun is
/// finished even when the client goes away; a live migration ends when it says `cancel`.
final class ControlServer: Sendable {
    let registry: Registry
    let configuration: ServiceConfiguration
    private let health: HealthMonitor
    private static let mostClients = 64
    private let clients = Guarded(0)
    private let feed: EventFeed

    init(registry: Registry, configuration: ServiceConfiguration, health: HealthMonitor? = nil) {
        self.registry = registry
        self.configuration = configuration
        self.health = health ?? HealthMonitor(configuration)
        feed = EventFeed(registry.environment.events) { registry.identity(of: $0) }
    }

    /// Accepts until the process ends.
    func accept(on listener: Int32) {
        while true {
            do {
                guard let descriptor = try acceptConnection(listener, until: nil) else { continue }
                guard clients.change({ count in
                    guard count < Self.mostClients else { return false }
                    count += 1
                    return true
                }) else { continue }
                let raw = descriptor.release()
                startThread("control") { [self] in
                    serve(LineChannel(Descriptor(owning: raw)))
                    clients.change { $0 -= 1 }
                }
            } catch {
                Log.error("The control socket: \(error)")
                usleep(100_000)
            }
        }
    }

    private func serve(_ channel: LineChannel) {
        do {
            guard let line = try channel.readLine(deadline: MonotonicTime.now.adding(milliseconds: 10_000)) else { return }
            let response: ControlResponse
            do {
                let request = try ControlCodec.decode(ControlRequest.self, from: line)
                let progress: @Sendable (ControlResponse.Progress) -> Void = { [self] progress in send(ControlResponse(progress: progress), channel) }
                if Self.changing.contains(request.verb) { try awaitTakenUp(progress) }
                if request.verb == .swap, let host = request.to, !isToShadow(request, host) {
                    response = try migrate(request, to: host, channel, progress)
                } else if request.verb == .drain || request.verb == .undrain {
                    response = try drain(request, channel, progress)
                } else if request.verb == .events {
                    response = try follow(request, channel)
                } else {
                    response = try answer(request, progress)
                }
            } catch let failure as ControlFailure {
                response = ControlResponse(failure: failure)
            } catch is DecodingError {
                response = ControlResponse(failure: ControlFailure("The request is not one that this service understands",
                                                                   advice: "Use the shadow-virt command of the same release (\(ProductVersion.text))"))
            } catch {
                response = ControlResponse(failure: ControlFailure("\(error)"))
            }
            send(response, channel)
            // Whoever waits for a second line of it wakes up; what was sent is read all the same.
            channel.shutDown()
        } catch {
            Log.debug("A control connection ended: \(error)")
        }
    }

    /// What is done to guests waits until it is known what an earlier service left. One that is in doubt would be protected anew, and run, though its new host
    /// may run it.
    private static let changing: Set<ControlRequest.Verb> = [.protect, .unprotect, .swap, .failover, .drain, .undrain]
    private static let takeUpMs = 30_000.0

    private func awaitTakenUp(_ progress: (ControlResponse.Progress) -> Void) throws {
        let limit = MonotonicTime.now.adding(milliseconds: Self.takeUpMs)
        while !registry.isTakenUp(by: min(limit, MonotonicTime.now.adding(milliseconds: 2000))) {
            guard limit > .now else {
                throw ControlFailure("\(configuration.hostName)'s service has just started and does not know yet what it left", advice: "Is libvirt there? Look at the service's log, then try again")
            }
            progress(ControlResponse.Progress("Waiting until the service, which has just started, knows what it left"))
        }
    }

    private func send(_ response: ControlResponse, _ channel: LineChannel) {
        do {
            try channel.writeLine(ControlCodec.encode(response), deadline: MonotonicTime.now.adding(milliseconds: 2000))
        } catch {
            Log.debug("A control client went away: \(error)")
        }
    }

    private func answer(_ request: ControlRequest, _ progress: @escaping @Sendable (ControlResponse.Progress) -> Void) throws -> ControlResponse {
        switch request.verb {
        case .ping:
            return ControlResponse(done: "shadow-virt \(ProductVersion.text)")
        case .status:
            var report = StatusReport(host: configuration.hostName, version: ProductVersion.text, time: Timestamp.now,
                                      domains: try registry.status(of: request.domain))
            report.telemetryCPUPercent = registry.telemetry?.cpuPercent
            report.isDraining = registry.isDraining ? true : nil
            return ControlResponse(status: report)
        case .doctor:
            return ControlResponse(doctor: try withProgress("Looking at this host", progress) { [registry] in
                try Doctor(environment: registry.environment).report(domain: request.domain, to: request.to)
            })
        case .protect:
            return try protect(request, progress)
        case .unprotect:
            let domain = try named(request)
            if let host = request.from { return try unprotect(domain, from: host, request, progress) }
            let remarks = try withProgress("Ending the protection of \(domain)", progress) { [registry] in
                try registry.unprotectForGood(domain, deleteReplica: request.deleteReplica ?? false, deadline: MonotonicTime.now.adding(milliseconds: 60_000))
            }
            return ControlResponse(done: (["Domain \(domain) is not protected any more; it runs on"] + remarks).joined(separator: ". "))
        case .swap:
            let domain = try named(request)
            return ControlResponse(handover: try withProgress({ [registry] in
                ControlResponse.Progress("Swapping \(domain)" + (registry.swapStep(of: domain).map { ": \($0)" } ?? ""))
            }, progress) { [registry] in
                // Longer than the engine periodic tries.
                try registry.swap(domain, to: request.to, deadline: MonotonicTime.now.adding(milliseconds: 300_000))
            })
        case .policy, .placement, .drain, .undrain:
            return try answerPolicy(request, progress)
        case .kpi:
            var response = ControlResponse()
            if request.inside == true {
                let domain = try named(request)
                response.inside = try withProgress("Asking the agent of \(domain)", progress) { [registry] in try registry.inside(of: domain) }
                return response
            }
            response.kpi = try registry.kpis(of: request.domain, since: request.sinceMs ?? 0)
            return response
        case .hosts:
            if let host = request.to { return ControlResponse(done: try withProgress("Telling the other hosts", progress) { [registry] in try registry.clearHost(host) }) }
            var response = ControlResponse()
            response.hosts = registry.hosts()
            return response
        case .diagnose:
            if request.list == true || request.bundle != nil { return try answerBundles(request, progress) }
            return ControlResponse(done: try withProgress("Collecting", progress) { [registry] in try registry.diagnose(host: request.to) })
        case .drift:
            var response = ControlResponse()
            response.drift = try registry.driftReport(of: request.domain)
            return response
        case .health:
            var response = ControlResponse()
            response.health = try request.to.map { try registry.health(of: $0) } ?? health.report
            return response
        case .cancel, .events:
            throw ControlFailure("There is nothing to cancel on this connection", advice: "It is asked for on the connection that began it")
        case .hook:
            guard let call = request.hook else { throw ControlFailure("The request names no call of the hook") }
            registry.hookCalled(call)
            return ControlResponse(done: "Noted")
        case .failover:
            let domain = try named(request)
            return ControlResponse(handover: try withProgress("Failing \(domain) over", progress) { [registry] in
                try registry.failover(domain, force: request.force ?? false) { progress(ControlResponse.Progress($0, isNotice: true)) }
            })
        }
    }

    /// A follower may be a process that somebody stopped: it is waited for, for minutes, and told what it missed.
    private func follow(_ request: ControlRequest, _ channel: LineChannel) throws -> ControlResponse {
        var answer = ControlResponse()
        answer.events = try feed.serve(request) { batch in
            var part = ControlResponse()
            part.events = batch
            try channel.writeLine(ControlCodec.encode(part), deadline: MonotonicTime.now.adding(milliseconds: 600_000))
        }
        return answer
    }

    /// A live migration, which the client may cancel by a second line. One that goes away without a word leaves it going.
    private func migrate(_ request: ControlRequest, to host: String, _ channel: LineChannel,
                         _ progress: @escaping @Sendable (ControlResponse.Progress) -> Void) throws -> ControlResponse {
        let domain = try named(request)
        let last = Guarded(ControlResponse.Progress("Moving \(domain) to \(host)"))
        let answer = try withProgress({ last.read { $0 } }, progress) { [registry] in
            try registry.migrate(domain, to: host, request.migration ?? MigrationOptions(), pool: request.pool, discardStale: request.discardStale ?? false, onBegin: { cancel in
                self.watchForCancel(channel) {
                    Log.info("\(domain): the migration is to be cancelled")
                    cancel()
                }
            }, progress: { step in
                last.change { $0 = step }
                progress(step)
            })
        }
        return switch answer {
        case .moved(let report): ControlResponse(migration: report)
        case .predicted(let forecast): ControlResponse(forecast: forecast)
        }
    }

    /// Calls `body` when the client says `cancel`. Ends with the connection.
    func watchForCancel(_ channel: LineChannel, _ body: @escaping @Sendable () -> Void) {
        startThread("control-cancel") {
            guard let line = try? channel.readLine(deadline: nil), let second = try? ControlCodec.decode(ControlRequest.self, from: line), second.verb == .cancel else { return }
            body()
        }
    }

    /// With options of a live migration it is meant to be one, which a protected domain is refused.
    private func isToShadow(_ request: ControlRequest, _ host: String) -> Bool {
        let isPlain = request.migration.map { $0 == MigrationOptions() } ?? true
        return isPlain && request.pool == nil && request.discardStale != true && registry.hasShadow(request.domain ?? "", on: host)
    }

    func named(_ request: ControlRequest) throws -> String {
        guard let domain = request.domain, !domain.isEmpty else { throw ControlFailure("The request names no domain") }
        return domain
    }

    private func protect(_ request: ControlRequest, _ progress: @Sendable (ControlResponse.Progress) -> Void) throws -> ControlResponse {
        let domain = try named(request)
        if let interval = request.intervalMs, !Interval.rangeMs.contains(interval) {
            throw ControlFailure("The interval of \(interval) ms is outside \(Interval.rangeMs.lowerBound) to \(Interval.rangeMs.upperBound) ms")
        }
        if let rate = request.diskRateBytesPerSecond, !DataRate.range.contains(rate) {
            throw ControlFailure("The disk rate of \(rate) bytes per second is outside \(DataRate.range.lowerBound) to \(DataRate.range.upperBound)")
        }
        let terms = ProtectRequest(request)
        // By the names that the configuration has: later they are looked for among the shadows.
        let asked = (request.shadows ?? request.to.flatMap { $0 == "auto" ? nil : [ShadowChoice(host: $0)] } ?? []).map { choice in
            ShadowChoice(host: registry.environment.configuration.peer(named: choice.host)?.name ?? choice.host, multiple: choice.multiple)
        }
        let adoption = try registry.adoptPolicy(domain, hosts: asked.map(\.host), terms, writes: request.noPolicy != true)
        defer { withExtendedLifetime(adoption) {} }
        // What was there already counts as well.
        let begun = adoption.kept == nil ? MonotonicTime.now : MonotonicTime(nanoseconds: 0)
        let protection: PrimaryProtection
        do {
            protection = try registry.environment.events.noting(.refused, domain: adoption.name) {
                try adoption.kept ?? registry.protect(domain, to: asked.isEmpty ? [ShadowChoice(host: registry.host(for: domain, nil, terms))] : asked, terms)
            }
        } catch {
            adoption.undo()
            throw error
        }
        let hosts = asked.isEmpty || adoption.kept != nil ? protection.shadowHosts : asked.map(\.host)
        guard request.wait ?? true else {
            return ControlResponse(done: "Protecting \(protection.domain.name) to \(protection.peerName); `shadow-virt status` shows how far it is")
        }
        while true {
            switch protection.settled(hosts, since: begun, until: MonotonicTime.now.adding(milliseconds: 1000)) {
            case .protected:
                let done = "Domain \(protection.domain.name) is protected to \(protection.peerName)"
                return ControlResponse(done: ([done] + protection.warnings).joined(separator: ". "))
            case .refused(let reason) where protection.slots(besides: hosts) > 0:
                adoption.undo()
                for host in hosts { _ = try? registry.unprotect(protection.domain.uuid, from: host, deleteReplica: false, deadline: MonotonicTime.now.adding(milliseconds: 30_000)) }
                throw ControlFailure("Domain \(protection.domain.name) got no shadow there: \(reason)")
            case .refused(let reason):
                adoption.undo()
                _ = try? registry.unprotect(protection.domain.uuid, deadline: MonotonicTime.now.adding(milliseconds: 30_000))
                throw ControlFailure("Domain \(protection.domain.name) could not be protected: \(reason)")
            case .ended(let reason):
                throw ControlFailure("The protection of \(protection.domain.name) ended before it began: \(reason)")
            case nil:
                let status = protection.status
                progress(ControlResponse.Progress(status.reason, bytesDone: status.syncBytesDone, bytesTotal: status.syncBytesTotal))
            }
        }
    }

    private func unprotect(_ domain: String, from host: String, _ request: ControlRequest,
                           _ progress: @escaping @Sendable (ControlResponse.Progress) -> Void) throws -> ControlResponse {
        let remarks = try withProgress("Taking the shadow of \(domain) away from \(host)", progress) { [registry] in
            try registry.unprotectForGood(domain, from: host, deleteReplica: request.deleteReplica ?? false, deadline: MonotonicTime.now.adding(milliseconds: 60_000))
        }
        return ControlResponse(done: (["Domain \(domain) has no shadow on \(host) any more; it runs on"] + remarks).joined(separator: ". "))
    }

    private func withProgress<R: Sendable>(_ what: String, _ progress: @escaping @Sendable (ControlResponse.Progress) -> Void,
                                           _ work: @escaping @Sendable () throws -> R) throws -> R {
        try withProgress({ ControlResponse.Progress(what) }, progress, work)
    }

    /// Runs `work` and says what it does every few seconds.
    func withProgress<R: Sendable>(_ what: () -> ControlResponse.Progress, _ progress: @escaping @Sendable (ControlResponse.Progress) -> Void,
                                           _ work: @escaping @Sendable () throws -> R) throws -> R {
        let result = Guarded<Result<R, any Error>?>(nil)
        startThread("work") {
            // Not within `change`: its lock is what the loop below waits for.
            let done = Result { try work() }
            result.change { $0 = done }
        }
        while true {
            if let done = result.wait(until: MonotonicTime.now.adding(milliseconds: 4000), { $0 }) { return try done.get() }
            progress(what())
        }
    }
}
