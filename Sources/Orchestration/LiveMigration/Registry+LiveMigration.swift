import Configuration
import ControlProtocol
import Foundation
import Libvirt
import Platform

/// `swap` of a domain without a shadow.
extension Registry {
    /// What `swap --to` gives: a move, or with `--dry-run` a forecast.
    public enum MigrationAnswer: Sendable {
        case moved(MigrationReport)
        case predicted(MigrationForecast)
    }

    /// Moves a domain to a peer by libvirt's live migration. `onBegin` gets a function that cancels it, once there is something to cancel.
    public func migrate(_ word: String, to host: String, _ options: MigrationOptions, pool: String?, discardStale: Bool,
                        onBegin: (@escaping @Sendable () -> Void) -> Void, progress: @escaping @Sendable (ControlResponse.Progress) -> Void) throws -> MigrationAnswer {
        if let problem = options.problem { throw ControlFailure(problem) }
        let peer = try environment.peer(host)
        if let problem = environment.marks.refusal(peer.name) { throw problem }
        let migration = try admission.withLock { () throws -> LiveMigration in
            let domain = try migratable(word, isDryRun: options.dryRun)
            let fresh = LiveMigration(domain: LocalDomain(uuid: domain.uuid, name: domain.name, connect: environment.connect), peer: peer, environment: environment,
                                      options: options, pool: pool, discardStale: discardStale)
            if !options.dryRun { migrations.change { $0[domain.uuid] = fresh } }
            return fresh
        }
        guard !options.dryRun else { return .predicted(try migration.forecast(progress)) }
        onBegin { migration.cancel() }
        defer { finish(migration) }
        return .moved(try migration.run(progress))
    }

    private static let takeBackEveryMs = 5000.0

    /// The migration is over. When the guest stayed and the peer could not be told so, that is tried until it hears it or the guest is moved again.
    private func finish(_ migration: LiveMigration) {
        let uuid = migration.domain.uuid
        migrations.change { $0[uuid] = nil }
        guard migration.mustBeTakenBack, let record = migration.attempt.read({ $0 }) else { return }
        startThread("take-back") { [self] in
            repeat {
                usleep(UInt32(Self.takeBackEveryMs) * 1000)
                guard migrations.read({ $0[uuid] == nil }) else { return }
            } while !migration.tryToTakeBack(record)
        }
    }

    /// The domain that is meant, unless it has a shadow, is one, or is on its way.
    private func migratable(_ word: String, isDryRun: Bool) throws -> Domain {
        let domain = try lookup(word)
        try checkHandedOver(domain.uuid, forgets: !isDryRun) { known in
            ControlFailure("Domain \(domain.name) is protected, to \(known.peer.name) (\(known.board.state.rawValue))",
                           advice: "`shadow-virt swap \(domain.name)` without --to moves it to its shadow there. For a live migration, `shadow-virt unprotect \(domain.name)` first")
        }
        if let shadow = shadow(domain.uuid), shadow.phase != .running {
            throw ControlFailure("\(environment.hostName) holds the shadow of \(domain.name); the guest runs on \(shadow.primary)", advice: "Run the command on \(shadow.primary)")
        }
        try refuseMigrating(domain.uuid)
        return domain
    }

    /// Throws while a domain is on its way to another host.
    func refuseMigrating(_ uuid: String) throws {
        guard let under = migrations.read({ $0[uuid] }) else { return }
        throw ControlFailure("Domain \(under.domain.name) is being moved to \(under.peer.name)", advice: "Wait for that, or end it with `virsh domjobabort \(under.domain.name)`")
    }

    /// Migrations that an earlier service began: libvirt went on without it.
    func resumeMigrations() {
        for record in MigrationStore(stateDirectory: environment.configuration.stateDirectory).load() {
            guard let peer = environment.configuration.peer(named: record.peer) else {
                Log.error("\(record.domain) was on its way to \(record.peer), which the configuration does not list any more; `virsh domstate` on both hosts tells how it ended")
                continue
            }
            let migration = LiveMigration(domain: LocalDomain(uuid: record.uuid, name: record.domain, connect: environment.connect), peer: peer,
                                          environment: environment, options: record.options)
            migrations.change { $0[record.uuid] = migration }
            startThread("migration") { [self] in
                defer { finish(migration) }
                do {
                    _ = try migration.resume(record)
                } catch {
                    Log.warning("\(record.domain): \(error)")
                }
            }
        }
    }

    // MARK: The target's side

    /// A guest runs here. If it came by a migration its volumes are its disks from now on, and nothing takes them back: with post-copy it runs before the
    /// migration is over, and the source's word that it is may never come.
    func noteResumed(_ uuid: String) {
        let store = MigrationStore(stateDirectory: environment.configuration.stateDirectory)
        guard store.expects(uuid) else { return }
        startThread("incoming") {
            Log.info("\(store.incoming(uuid)?.domain ?? uuid): runs here now")
            store.removeIncoming(uuid)
        }
    }

    func receive(_ request: PeerRequest) throws -> PeerResponse {
        try admission.withLock {
            let incoming = try IncomingMigration(request, environment: environment)
            try checkListsPeer(request.host)
            try checkProtectsNot(incoming.uuid, incoming.name)
            if let shadow = shadow(incoming.uuid), shadow.phase != .unknown, shadow.phase != .running {
                throw ControlFailure("\(environment.hostName) holds a shadow of \(incoming.name)", advice: "End its protection on \(shadow.primary) first")
            }
            return try incoming.receive(request)
        }
    }
}
