import ControlProtocol
import Foundation
import Glibc
import Libvirt
import Platform
import Replication

/// The shadow becomes the guest.
extension ShadowProtection {
    /// Loads the last committed epoch into QEMU, which stays paused. Repeating it tells what was done.
    public func load() throws -> PeerResponse {
        // One that died is replaced, under the same lock: not to be waited for there.
        _ = worker.wait(until: MonotonicTime.now.adding(milliseconds: Self.workerMs)) { [phaseBox] in $0 != nil || phaseBox.read { $0 } != .receiving ? true : nil }
        return try lock.withLock {
            switch phase {
            case .loaded: return PeerResponse(phase: .loaded, epoch: committedEpoch, milliseconds: 0)
            case .receiving: break
            default: throw ControlFailure("The shadow of \(name) on \(environment.hostName) is \(phase.rawValue)")
            }
            let begin = MonotonicTime.now
            guard let current = worker.read({ $0 }) else { throw ControlFailure("The shadow of \(name) has no worker at the moment", advice: "Try again") }
            current.order(WorkerCommand(.activate, path: incomingSocket))
            let event = awaitEvent([.activated, .activationFailed], milliseconds: 12_000)
            guard let event, event.kind == .activated, let epoch = event.epoch else {
                phaseBox.change { $0 = .failed }
                throw ControlFailure("The guest's state could not be fed to the shadow of \(name): \(event?.reason ?? "no answer from its worker")")
            }
            try awaitLoaded()
            phaseBox.change { $0 = .loaded }
            board.set(.swapping, "loaded, waiting for the word of \(primary)")
            loadedEpoch = epoch
            return PeerResponse(phase: .loaded, epoch: epoch, milliseconds: MonotonicTime.now.milliseconds(since: begin))
        }
    }

    private static let workerMs = 5000.0
    private var committedEpoch: UInt64 { worker.read { $0 }?.statistics[.committedEpoch] ?? loadedEpoch }

    /// Waits until QEMU has digested its state: from `inmigrate` to `paused`.
    private func awaitLoaded() throws {
        let deadline = MonotonicTime.now.adding(milliseconds: 10_000)
        while true {
            let status: String
            do {
                status = try domain.monitor(QueryStatus()).status
            } catch {
                phaseBox.change { $0 = .failed }
                throw ControlFailure("QEMU did not accept the guest's state: \(error)", advice: "Its log is /var/log/libvirt/qemu/\(name).log on \(environment.hostName)")
            }
            if status == "running" {
                // Somebody resumed the waiting shadow with virsh, which emits no event: QEMU did not wait after loading. The primary
                // stands still, so this copy is the only one that moves; stop it until its word comes.
                Log.warning("\(name): the waiting shadow had been resumed by somebody; stopped again until it may run")
                try domain.monitor(Stop())
                return
            }
            if status != "inmigrate" { return }
            guard deadline > .now else {
                phaseBox.change { $0 = .failed }
                throw ControlFailure("QEMU did not load the guest's state within 10 s")
            }
            usleep(500)
        }
    }

    /// Lets the loaded guest run. The caller has made sure that it runs nowhere else.
    public func run(persistentXML: String?, autostart: Bool) throws -> PeerResponse {
        try lock.withLock {
            if phase == .running { return PeerResponse(phase: .running, milliseconds: 0) }
            guard phase == .loaded else { throw ControlFailure("The shadow of \(name) on \(environment.hostName) is \(phase.rawValue), not loaded") }
            let begin = MonotonicTime.now
            if !replicas.isEmpty { try provisioner.noteInUse() }
            // First on disk: a service that starts anew must not take the running guest for a left-over shadow.
            try environment.records.write(record(.activated))
            do {
                try domain.handle().resume()
            } catch {
                // Never half: what did not start must not start later, and libvirt may have ended after it had told QEMU.
                phaseBox.change { $0 = .failed }
                endQEMU()
                removeDomain()
                environment.records.remove(uuid)
                throw ControlFailure("The guest did not start: \(error)")
            }
            let milliseconds = MonotonicTime.now.milliseconds(since: begin)
            markRunning()
            let loaded = loadedEpoch
            isSettling.change { $0 = true }
            DispatchQueue.global().async { [self] in settle(persistentXML, autostart: autostart) }
            return PeerResponse(phase: .running, epoch: loaded, milliseconds: milliseconds)
        }
    }

    /// No code of the guest runs here from now on, whatever libvirt says or does not say.
    private func endQEMU() {
        guard let pid = try? domain.processID() else { return }
        if !endProcess(pid, waitMs: Self.exitMs) { Log.error("\(name): QEMU's process \(pid) was killed, but has not ended within \(Int(Self.exitMs / 1000)) s") }
    }

    private static let exitMs = 10_000.0

    /// Boots the guest cold in the shadow's place. The caller has made sure that it runs nowhere else. Repeating it tells what was done.
    func restart(persistentXML: String?, autostart: Bool) throws -> PeerResponse {
        try lock.withLock {
            if phase == .running { return PeerResponse(phase: .running, milliseconds: 0) }
            guard phase == .receiving, let coldXML else { throw ControlFailure("The shadow of \(name) on \(environment.hostName) is \(phase.rawValue), and not to be booted") }
            let begin = MonotonicTime.now
            phaseBox.change { $0 = .failed }
            stopWorker()
            newNVRAM = nil  // It is what the guest boots from.
            removeDomain()
            if !replicas.isEmpty { try provisioner.noteInUse() }
            try environment.records.write(record(.activated))
            do {
                _ = try environment.connect().create(xml: coldXML, flags: [])
            } catch {
                endQEMU()
                environment.records.remove(uuid)
                throw ControlFailure("The guest did not boot on \(environment.hostName): \(error)")
            }
            markRunning()
            isSettling.change { $0 = true }
            DispatchQueue.global().async { [self] in settle(persistentXML, autostart: autostart) }
            return PeerResponse(phase: .running, milliseconds: MonotonicTime.now.milliseconds(since: begin))
        }
    }

    /// What can wait until the guest runs. Without a definition the one that came earlier counts: its primary's host may be dead.
    private func settle(_ persistentXML: String?, autostart: Bool) {
        defer { isSettling.change { $0 = false } }
        environment.taken.note(session)
        environment.taken.keep()
        stopWorker()
        do {
            try keep(persistentXML.map { CarriedDefinition(xml: $0, autostart: autostart) })
        } catch {
            Log.error("\(name): \(error)")
        }
        if let definition = carried.read({ $0 }) {
            do {
                let defined = try environment.connect().define(xml: definition.xml)
                if definition.autostart { try defined.setAutostart(true) }
            } catch {
                Log.error("\(name) runs here, but could not be defined persistently: \(error). Define it with `virsh define`")
            }
        }
        do { try environment.records.write(record(.running)) } catch { Log.error("\(name): \(error)") }
    }

    /// Waits until the guest that runs here is an ordinary domain: with its definition, and with no record to be written any more that
    /// would take the place of a later one.
    func awaitSettled() {
        _ = isSettling.wait(until: MonotonicTime.now.adding(milliseconds: 10_000)) { $0 ? nil : true }
    }

    // MARK: After a restart of the service

    /// The order to run had been given, and perhaps not been carried out.
    /// False: it does not run yet.
    func finishActivation(_ record: ProtectionRecord) -> Bool {
        guard record.phase == .activated else { return true }
        do {
            if try domain.handle().state().state == .paused { try domain.handle().resume() }
        } catch {
            Log.error("\(name) was to run here, but does not: \(error). That is tried again; look at it with virsh")
            return false
        }
        // Perhaps before it was defined.
        settle(nil, autostart: false)
        return true
    }

    /// Whoever asks meanwhile hears that it is loaded: its primary's host keeps its own copy, and repeats the order.
    func keepActivating(_ record: ProtectionRecord) {
        phaseBox.change { $0 = .loaded }
        startThread("activate") { [self] in
            var isDone = false
            while !isDone {
                usleep(1_000_000)
                isDone = lock.withLock {
                    guard phase == .loaded else { return true }
                    guard finishActivation(record) else { return false }
                    markRunning()
                    return true
                }
            }
        }
    }

    func markRunning() {
        environment.taken.note(session)
        phaseBox.change { $0 = .running }
        Self.removeSocket(uuid, environment)
        board.set(.failedOver, "Runs here since \(primary) handed it over; not protected", cause: isTakingOver.read { $0 } ? .failover : nil)
    }
}
