import ControlProtocol
import Glibc
import Libvirt
import Platform
import Replication

/// An attempt begins: shadows, guard, disks, worker, and QEMU's stream.
extension PrimaryProtection {
    /// Where the engine `periodic` says that it reads a pass.
    private var passLock: String { PassLock.path(of: "\(environment.configuration.runtimeDirectory)/\(domain.uuid)/colo.sock") }

    func begin() throws {
        board.set(.syncing, "preparing the shadow on \(slots.map(\.peer.name).joined(separator: ", "))")
        generation += 1
        suspension = nil
        stopDetail = nil
        let handle = try domain.handle()
        guard try handle.isActive() else { throw ControlFailure("Domain \(domain.name) does not run") }
        // Left over from a worker or a service that died: the guest first.
        passes = Passes()
        try passControl.recover(lock: passLock)
        waitsForResume = try !isPeriodic && COLOControl(domain: domain).thaw() == COLOControl.suspended
        guard !waitsForResume else { throw ControlFailure("The guest is suspended; protection begins anew when it is resumed") }
        let (state, reason) = try handle.state()
        guard state == .running else {
            throw ControlFailure("Domain \(domain.name) is \(state.describe(reason: reason)), not running", advice: "Resume it; protection begins then")
        }
        let definition = try DomainDefinition(forShadowOf: handle)
        let plan = try planDisks(handle)
        let hasReplicas = plan?.replicas.isEmpty == false
        record.phase = .protecting
        claimant.change { $0 = nil }
        record.sharedDisks = plan?.shared.isEmpty == false ? plan?.shared : nil
        if record.savedParameters.isEmpty { record.savedParameters = try COLOControl(domain: domain).currentParameters() }

        var request = try PeerRequest(.prepare, host: environment.hostName, uuid: domain.uuid, domain: domain.name,
                                      xml: definition.shadowXML(), intervalMs: record.intervalMs, memoryBytes: definition.memoryBytes,
                                      disks: plan?.replicas, media: plan?.media, pool: record.pool, discardStale: record.discardStale)
        request.engine = record.engine.rawValue
        request.carried = try CarriedDefinition.read(handle)
        request.nvram = try NVRAM.read(definition)
        request.onFailure = record.onFailure
        request.hasSharedDisks = record.sharedDisks == nil ? nil : true
        let replicas = try prepareShadows { [request] slot in
            var request = request
            request.session = slot.session
            request.family = family
            return request
        }
        carrier.noteSent(request.carried)
        // Said of what lay there then.
        record.discardStale = nil
        try environment.records.write(record)
        if !hasReplicas { try raiseGuard() }

        let pid = try domain.processID()
        processWatch = processDescriptor(pid)
        watchedProcess = pid
        let owner = try LocalDomain.owner(of: pid)
        let folder = try environment.socketDirectory(domain.uuid, owner: owner)
        streamPath = "\(folder)/colo.sock"
        if let plan, hasReplicas {
            currentDisks.change { $0 = DiskSession(plan: plan, replicas: replicas, domain: domain, socket: "\(folder)/disks.sock") }
        }
        try startWorker(path: streamPath, owner: owner, plan, diskPath: "\(folder)/disks.sock")
        if !hasReplicas { try startStream() } else { board.set(.syncing, "comparing the disks with their replicas on \(slots.filter(\.isIn).map(\.peer.name).joined(separator: ", "))") }
    }

    func startStream() throws {
        board.set(.syncing, "copying the guest's memory")
        guard !isPeriodic else { return passes.mayBegin = true }
        try COLOControl(domain: domain).start(path: streamPath, intervalMs: orderedIntervalMs)
    }

    /// What becomes of the disks; nil when they are left alone.
    private func planDisks(_ handle: Domain) throws -> DiskPlan? {
        guard !record.withoutDisks else { return nil }
        let folder = "\(environment.configuration.runtimeDirectory)/\(domain.uuid)"
        try DiskMirror.abortLeftOvers(of: domain, folder: folder)
        let plan = try DiskPlan.make(handle, DomainDefinition(xml: handle.xml()), ownFolders: environment.ownFolders)
        try plan.checkNoneIsRefused()
        // Whoever wants to overwrite them one day has to know that the guest ran on them.
        if !plan.replicas.isEmpty { try replicaNotes.notePrimary(plan) }
        return plan
    }

    // MARK: Disks

    /// The disks' way to the first epoch, one step when it is time for it.
    func advanceDisks() throws -> Outcome? {
        guard let disks = currentDisks.read({ $0 }), disks.stage == .copying || disks.stage == .following else { return nil }
        do {
            let ready = try disks.areReady()
            if let changed = try disks.plan.sizeChanges(domain.handle()).first { return .retry("\(changed)") }
            if disks.stage == .copying {
                if ready {
                    disks.settle()
                    worker?.order(WorkerCommand(.disksReady))
                }
            }
        } catch let failure as ControlFailure {
            if wasProtected, hasQEMUEnded() { return try failover() }
            return .retry("\(failure)")
        }
        return nil
    }

    private func raiseGuard() throws {
        let migrationGuard = ForeignMigrationGuard(domain: domain, directory: environment.configuration.stateDirectory)
        if let disk = record.guardDisk {
            // Still standing from an earlier attempt?
            if let job = try? domain.handle().blockJobInfo(disk: disk), job.type == .copy { return }
            migrationGuard.lower(disk: nil, file: record.guardFile)
        }
        let current = try DomainDefinition(xml: domain.handle().xml(flags: []))
        let raised = try migrationGuard.raise(current)
        record.guardDisk = raised?.disk
        record.guardFile = raised?.file
        try environment.records.write(record)
        if raised == nil {
            Log.warning("\(domain.name): the guest has no disk, so nothing keeps `virsh save`, `dump` or `migrate` away from it: do not use them while it is protected")
        }
    }

    private func startWorker(path: String, owner: (user: uid_t, group: gid_t), _ plan: DiskPlan?, diskPath: String) throws {
        let configuration = environment.configuration
        var options = SourceWorkerOptions(
            domain: domain.name, host: environment.hostName, peers: sourcePeers, secret: environment.secretBytes, streamPath: path,
            streamOwner: owner.user, streamGroup: owner.group, intervalMs: orderedIntervalMs, intervalLimitMs: Double(configuration.intervalLimitMs), ceilingBytes: configuration.unsentCeilingBytes,
            keepaliveMs: Double(configuration.keepaliveMs), peerTimeoutMs: Double(configuration.peerTimeoutMs))
        options.diskPath = diskPath
        options.engine = record.engine
        options.disks = (plan?.replicas ?? []).enumerated().map { CapturedDisk(index: $0.offset, target: $0.element.target, byteCount: $0.element.capacityBytes) }
        let mine = generation
        let process = try WorkerProcess(name: domain.name, start: WorkerCommand(.startSource, source: options)) { [weak self] event in
            self?.post(.worker(event, generation: mine))
        } onEnd: { [weak self] status in
            self?.post(.workerEnded(status, generation: mine))
        }
        process.statistics[.eventsAway] = libvirtIsAway.read { $0 } ? 1 : 0
        currentWorker.change { $0 = process }
        let ready: Bool? = select(until: MonotonicTime.now.adding(milliseconds: 10_000)) { event in
            switch event {
            case .worker(let event, mine) where event.kind == .ready: true
            case .workerEnded(_, mine): false
            default: nil
            }
        }
        guard ready == true else { throw ControlFailure("The source worker did not start") }
    }
}
