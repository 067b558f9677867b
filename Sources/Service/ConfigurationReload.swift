import Configuration
import Glibc
import Orchestration
import Platform

/// The configuration read again while the service runs (`systemctl reload`, SIGHUP).
struct ConfigurationReload {
    private typealias Same = @Sendable (ServiceConfiguration, ServiceConfiguration) -> Bool

    /// What sockets, folders and connections hang on since the start.
    private static let fixed: [(key: String, isSame: Same)] = [
        ("host_name", { $0.hostName == $1.hostName }), ("libvirt_uri", { $0.libvirtURI == $1.libvirtURI }), ("listen", { $0.listen == $1.listen }),
        ("control_socket", { $0.controlSocket == $1.controlSocket }), ("control_socket_group", { $0.controlSocketGroup == $1.controlSocketGroup }),
        ("runtime_dir", { $0.runtimeDirectory == $1.runtimeDirectory }), ("state_dir", { $0.stateDirectory == $1.stateDirectory }),
        ("secret_file", { $0.secretFile == $1.secretFile }), ("metrics_listen", { $0.metricsListen == $1.metricsListen }),
        ("telemetry_interval", { $0.telemetryInterval == $1.telemetryInterval }), ("probe_directories", { $0.probeDirectories == $1.probeDirectories }),
        ("bmc_address", { $0.bmc.access == $1.bmc.access }), ("bmc_user", { $0.bmc.user == $1.bmc.user }), ("bmc_password_file", { $0.bmc.passwordFile == $1.bmc.passwordFile }),
        ("bmc_privilege", { $0.bmc.privilege == $1.bmc.privilege }), ("bmc_cipher_suite", { $0.bmc.cipherSuite == $1.bmc.cipherSuite }),
        ("bmc_workarounds", { $0.bmc.workarounds == $1.bmc.workarounds }), ("bmc_interval", { $0.bmc.interval == $1.bmc.interval }),
        ("guest_exec", { $0.guestExec == $1.guestExec }),
        ("bmc_protocol", { $0.bmc.version == $1.bmc.version }), ("bmc_authentication", { $0.bmc.authentication == $1.bmc.authentication }),
        ("bmc_kg_file", { $0.bmc.kgFile == $1.bmc.kgFile }), ("bmc_driver", { $0.bmc.driver == $1.bmc.driver }), ("bmc_driver_device", { $0.bmc.device == $1.bmc.device }),
    ]

    /// The new one, with the old values of what cannot change.
    let configuration: ServiceConfiguration
    /// Keys that differ in the file but need a restart.
    let needsRestart: [String]
    /// What changed at once, in words.
    let changes: [String]

    init(from old: ServiceConfiguration, to new: ServiceConfiguration) {
        needsRestart = Self.fixed.filter { !$0.isSame(old, new) }.map(\.key)
        var merged = new
        merged.file = old.file
        merged.hostName = old.hostName
        merged.libvirtURI = old.libvirtURI
        merged.listen = old.listen
        merged.controlSocket = old.controlSocket
        merged.controlSocketGroup = old.controlSocketGroup
        merged.runtimeDirectory = old.runtimeDirectory
        merged.stateDirectory = old.stateDirectory
        merged.metricsListen = old.metricsListen
        (merged.telemetryInterval, merged.probeDirectories, merged.guestExec) = (old.telemetryInterval, old.probeDirectories, old.guestExec)
        merged.bmc = old.bmc
        merged.secretFile = old.secretFile
        merged.secretFileIsExplicit = old.secretFileIsExplicit
        configuration = merged
        changes = Self.changes(old, merged)
    }

    private static func changes(_ old: ServiceConfiguration, _ new: ServiceConfiguration) -> [String] {
        var changes: [String] = []
        if old.logLevel != new.logLevel { changes.append("log_level is \(new.logLevel.rawValue); workers that run keep theirs") }
        for peer in new.peers where old.peer(named: peer.name) != peer { changes.append("peer \(peer.name) is \(peer.address) \(peer.libvirtURI)") }
        for peer in old.peers where new.peer(named: peer.name) == nil { changes.append("peer \(peer.name) is gone; protections that run keep it") }
        let numbers: [(String, Int, Int)] = [
            ("interval_ms", old.intervalMs, new.intervalMs), ("interval_limit_ms", old.intervalLimitMs, new.intervalLimitMs),
            ("unsent_ceiling_mib", old.unsentCeilingMiB, new.unsentCeilingMiB), ("keepalive_ms", old.keepaliveMs, new.keepaliveMs),
            ("peer_timeout_ms", old.peerTimeoutMs, new.peerTimeoutMs),
        ]
        if old.replaceAfter != new.replaceAfter { changes.append("shadow_replace_after is \(new.replaceAfter) s") }
        if old.labels != new.labels { changes.append("labels are taken from now on") }
        if old.drift != new.drift { changes.append("on_drift is \(new.drift.onDrift.rawValue), after \(new.drift.swapAfter) s") }
        for (key, before, now) in numbers where before != now { changes.append("\(key) is \(now) for what begins from now on") }
        return changes
    }

    /// Reads the file and puts it into effect. A file that makes no sense changes nothing.
    static func run(_ environment: HostEnvironment) {
        let old = environment.configuration
        let new: ServiceConfiguration
        do {
            new = try ServiceConfiguration.load(path: old.file)
        } catch {
            return Log.error("The configuration stays as it was: \(error)")
        }
        let reload = ConfigurationReload(from: old, to: new)
        environment.replace(configuration: reload.configuration)
        if old.logLevel != new.logLevel, let level = Log.Level(named: new.logLevel.rawValue) {
            Log.threshold = level
            // For workers to come. The variable is there since the start: only its value is exchanged, for which other threads' getenv(3) has no eye.
            setenv(Log.environmentKey, new.logLevel.rawValue, 1)
        }
        Log.info("\(old.file) was read again: " + (reload.changes.isEmpty ? "nothing changes" : reload.changes.joined(separator: "; ")))
        if !reload.needsRestart.isEmpty {
            Log.warning("\(reload.needsRestart.joined(separator: ", ")) changed in \(old.file): that takes `systemctl restart shadow-virt`; guests run on")
        }
    }
}
