import ControlProtocol
import Glibc
import Libvirt
import Platform
import Replication

/// QEMU's migration as the engine `periodic` uses it: switched on for one pass, and off without a trace after it.
struct PassControl {
    let domain: LocalDomain

    private static let snapshot = "background-snapshot"
    private static let pause = "pause-before-switchover"
    /// QEMU's own default; what the guest writes in so long at the end is copied while it stands still.
    private static let downtimeLimitMs: UInt64 = 300
    private static let pollMicroseconds: UInt32 = 5000

    /// Starts a pass: QEMU connects to `path`.
    func start(_ kind: PassKind, path: String) throws {
        try domain.startStream(to: path, capability: kind == .snapshot ? Self.snapshot : Self.pause,
                               MigrateSetParameters(maxBandwidth: LocalDomain.unlimitedBandwidth, downtimeLimitMilliseconds: Self.downtimeLimitMs))
    }

    /// Removes what `start` switched on. Only when the pass is over: QEMU looks at its capabilities until then.
    func end(restoring parameters: [String: UInt64] = [:]) throws {
        // One at a time: a QEMU without the other one refuses both.
        for capability in [Self.snapshot, Self.pause] where try isOn(capability) { try domain.monitor(MigrateSetCapabilities([capability: false])) }
        guard !parameters.isEmpty else { return }
        try domain.monitor(MigrateSetParameters(maxBandwidth: parameters["max-bandwidth"], downtimeLimitMilliseconds: parameters["downtime-limit"]))
    }

    private func isOn(_ capability: String) throws -> Bool {
        try domain.monitor(QueryMigrateCapabilities()).contains { $0.capability == capability && $0.state }
    }

    /// Waits until no migration is under way. A snapshot is never cancelled: see `PassDialogue`.
    /// Returns its last status; nil: it goes on at the limit.
    func awaitEnd(milliseconds: Double) throws -> String? {
        let deadline = MonotonicTime.now.adding(milliseconds: milliseconds)
        while true {
            let status = try domain.monitor(QueryMigrate()).status ?? "none"
            switch status {
            case "setup", "active", "device", "cancelling", "pre-switchover": break
            default: return status
            }
            guard deadline > .now else { return nil }
            usleep(Self.pollMicroseconds)
        }
    }

    /// Puts right whatever an earlier pass, of an earlier service perhaps, left behind: a guest that stands still because of us runs on, and
    /// nothing of ours is switched on. Does nothing to a guest without a pass.
    ///
    /// - Parameter lock: the path of the lock of whoever reads a pass.
    func recover(lock: String, limitMs: Double = 120_000) throws {
        let deadline = MonotonicTime.now.adding(milliseconds: limitMs)
        // A worker whose service died reads its pass to the end. A migration has none without a service's word: the guest waits for that.
        while PassLock.isHeld(lock), deadline > .now {
            if try isOn(Self.pause) { try domain.monitor(MigrateCancel()) }
            usleep(Self.pollMicroseconds)
        }
        guard !PassLock.isHeld(lock) else { throw ControlFailure("A pass of \(domain.name) is still read by a worker of an earlier service") }
        // Before any question to QEMU: its main loop may wait for the memory as well.
        let releaser = MemoryReleaser(domain)
        defer { releaser.stop() }
        let isSnapshot = try isOn(Self.snapshot)
        guard try isSnapshot || isOn(Self.pause) else { return }
        if !isSnapshot, let status = try domain.monitor(QueryMigrate()).status, ["setup", "active", "device", "pre-switchover"].contains(status) {
            try domain.monitor(MigrateCancel())
        }
        let status = try awaitEnd(milliseconds: max(1000, deadline.milliseconds(since: .now)))
        guard status != nil else { throw ControlFailure("A pass of \(domain.name) does not end") }
        try letRun()
        try end()
    }

    /// Lets the guest run on that stands still because of a pass: QEMU does not when it fails early, and after a migration. One that its
    /// user suspended stays so.
    func letRun(milliseconds: Double = 10_000) throws {
        let deadline = MonotonicTime.now.adding(milliseconds: milliseconds)
        while true {
            let status = try domain.monitor(QueryStatus()).status
            switch status {
            case "paused":
                let (state, reason) = try domain.handle().state()
                if state == .paused, reason == PausedReason.user.rawValue { return }
                try domain.monitor(Cont())
            case "postmigrate": try domain.monitor(Cont())
            case "finish-migrate": usleep(Self.pollMicroseconds)
            default: return
            }
            guard deadline > .now else { throw ControlFailure("The guest does not run on (it is `\(status)`)", advice: "Run `virsh resume \(domain.name)`") }
        }
    }
}
