import ControlProtocol
import Foundation
import Platform

/// Hand-overs without being asked, by `WarmSwapLaw`.
extension DriftKeeper {
    /// What a peer has against it is asked again after so long.
    private static let askEveryMs = 10_000.0, askLimitMs = 3000.0
    private static let policyEveryMs = 10_000.0
    private static let swapLimitMs = 300_000.0
    /// After a swap that failed; doubled with each, up to the last.
    private static let backOffSeconds = 300.0, longestBackOffSeconds = 3600.0

    /// What drift of a domain leads to: its policy's word, else the configuration's.
    func onDrift(_ uuid: String) -> DomainPolicy.DriftAction {
        watches.read { $0.first { $0.key.uuid == uuid }?.value.policy } ?? environment.configuration.drift.onDrift
    }

    /// Of this host, whatever domain it is about.
    var hardwareHere: HardwareTrouble {
        let kpis = watches.read { $0.values.first?.hostValues } ?? [:]
        return HardwareTrouble(health(), kpis: kpis, now: Self.now, since: environment.marks.clearedAt)
    }

    func consider(_ key: Key, _ protection: PrimaryProtection, _ status: DomainStatus, _ trouble: HardwareTrouble, _ now: Double) {
        lookAtPolicy(key, protection)
        guard let watch = watches.read({ $0[key] }), !watch.isSwapping else { return }
        let steady = Self.steadyNow
        var look = WarmSwapLaw.Look(now: steady, score: watch.score)
        look.isShadowAccused = watch.verdict?.side == .shadow && (watch.score ?? 0) >= IntervalLaw.enter
        look.hardware = trouble.critical
        look.onDrift = onDrift(key.uuid)
        look.swapAfter = Double(environment.configuration.drift.swapAfter)
        look.state = status.state
        look.commitAgeMs = status.rpoMs
        look.intervalMs = status.intervalMs
        look.lagEpochs = status.lagEpochs
        look.lastSwap = environment.marks.lastSwap(key.uuid).map { steady - (now - $0) }
        look.retryAt = watch.retryAt
        var law = watch.swap
        var decision = law.decide(look)
        if case .swap = decision {
            look.peerObstacle = peerObstacle(key, watch, protection)
            decision = law.decide(look)
        }
        watches.change { watches in
            watches[key]?.swap = law
            watches[key]?.decision = decision
        }
        follow(decision, key, watch, protection)
    }

    /// The policy is in libvirt: not asked for each second.
    private func lookAtPolicy(_ key: Key, _ protection: PrimaryProtection) {
        guard let watch = watches.read({ $0[key] }), !protection.libvirtAway else { return }
        if let at = watch.policyAt, at.adding(milliseconds: Self.policyEveryMs) > .now { return }
        // What cannot be read is as it was.
        guard let handle = try? protection.domain.handle(), let policy = try? PolicyStore(domain: handle).read() else {
            return watches.change { $0[key]?.policyAt = .now }
        }
        watches.change { watches in
            watches[key]?.policy = policy.isEnabled ? policy.onDrift : nil
            watches[key]?.policyAt = .now
        }
    }

    /// What is known against the shadow's host, by itself or by us.
    private func peerObstacle(_ key: Key, _ watch: DriftWatch, _ protection: PrimaryProtection) -> String? {
        if let mark = environment.marks.suspicion(key.peer) { return "\(key.peer) is suspect: \(mark.reason)" }
        if let asked = watch.peerObstacle, asked.at.adding(milliseconds: Self.askEveryMs) > .now { return asked.text }
        let request = PeerRequest(TrustCall(.take), host: environment.hostName, uuid: key.uuid, domain: watch.domain)
        var obstacle: String?
        do {
            _ = try environment.client(of: protection.peer).ask(request, timeoutMs: Self.askLimitMs)
        } catch { obstacle = "\(error)" }
        let text = obstacle
        watches.change { $0[key]?.peerObstacle = text.map { ($0, .now) } }
        return text
    }

    private func follow(_ decision: WarmSwapLaw.Decision, _ key: Key, _ watch: DriftWatch, _ protection: PrimaryProtection) {
        switch decision {
        case .stay: watches.change { $0[key]?.told = nil }
        case .wait: break
        case .held(let cause, let obstacle):
            guard watch.told != obstacle.kind else { return }
            watches.change { $0[key]?.told = obstacle.kind }
            let text = "\(watch.domain) stays on \(environment.hostName) though \(cause): \(obstacle.text)"
            Log.warning(text)
            record("drift_notice", watch, text, ["cause": cause, "obstacle": obstacle.kind])
        case .swap(let cause):
            watches.change { watches in
                watches[key]?.isSwapping = true
                watches[key]?.told = nil
            }
            startThread("warm-swap") { [self] in swap(key, watch, cause) }
        }
    }

    private func swap(_ key: Key, _ watch: DriftWatch, _ cause: String) {
        defer { watches.change { $0[key]?.isSwapping = false } }
        let host = environment.hostName
        Log.warning("\(watch.domain): going over to \(key.peer) without being asked: \(cause)")
        record("warm_swap_began", watch, "\(watch.domain) goes over to \(key.peer) without being asked: \(cause)", ["cause": cause])
        do {
            guard let registry else { return }
            // Before it is done: a service that is killed meanwhile must not try again at once.
            try environment.marks.noteSwap(key.uuid, Self.now)
            let report = try registry.swap(key.uuid, to: key.peer, deadline: MonotonicTime.now.adding(milliseconds: Self.swapLimitMs))
            record("warm_swap", watch, "\(watch.domain) runs on \(report.to), away from \(host): \(cause)",
                   ["cause": cause, "outage_ms": String(format: "%.1f", report.outageMs), "epoch": "\(report.epoch)"])
            isolate(key, watch, "\(watch.domain) left it by itself: \(cause)")
        } catch {
            failed(key, watch, cause, "\(error)")
        }
    }

    private func failed(_ key: Key, _ watch: DriftWatch, _ cause: String, _ reason: String) {
        let pause = min(Self.longestBackOffSeconds, Self.backOffSeconds * pow(2, Double(min(watch.failures, 8))))
        watches.change { watches in
            watches[key]?.retryAt = Self.steadyNow + pause
            watches[key]?.failures += 1
        }
        try? environment.marks.forgetSwap(key.uuid)
        Log.error("\(watch.domain) did not go over to \(key.peer) (\(cause)): \(reason). It is tried again in \(Int(pause / 60)) min at the earliest; "
            + "look at `shadow-virt status`, and swap it yourself")
        record("warm_swap_failed", watch, "\(watch.domain) did not go over to \(key.peer): \(reason)", ["cause": cause, "retry_seconds": "\(Int(pause))"])
    }

    /// This host gets nothing more until somebody has looked at it, and what there is to see is put aside.
    private func isolate(_ key: Key, _ watch: DriftWatch, _ reason: String) {
        do { try environment.marks.suspect(environment.hostName, reason) } catch { Log.error("This host is suspect (\(reason)), which cannot be kept: \(error)") }
        environment.events.record(kind: "host_suspect", message: "\(environment.hostName) is suspect: \(reason)", details: ["host": environment.hostName])
        let request = PeerRequest(TrustCall(.suspect, reason: reason), host: environment.hostName, uuid: key.uuid, domain: watch.domain)
        for peer in environment.configuration.peers {
            do { _ = try environment.client(of: peer).ask(request, timeoutMs: Self.askLimitMs) } catch {
                Log.warning("\(peer.name) does not know that this host is suspect: \(error). Run `shadow-virt hosts` there")
            }
        }
        do { _ = try registry?.diagnose(reason, about: watch) } catch { Log.warning("No bundle was made of what there is to see: \(error)") }
    }
}
