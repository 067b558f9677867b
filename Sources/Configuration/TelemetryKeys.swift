/// What the service measures.
extension ConfigurationKey {
    /// As many as telemetry looks at.
    static let mostProbeDirectories = 8

    static let telemetryInterval = ConfigurationKey("telemetry_interval") { input, configuration throws(ConfigurationError) in
        configuration.telemetryInterval = try input.integer(in: 0...3600)
    }

    static let guestExec = ConfigurationKey("guest_exec") { input, configuration throws(ConfigurationError) in
        configuration.guestExec = try input.integer(in: 0...1) == 1
    }

    static let probeDirectories = ConfigurationKey("probe_directories") { input, configuration throws(ConfigurationError) in
        guard case .list(let elements) = input.value.content else {
            throw input.error("Expected a list of strings", advice: "Write probe_directories = [ \"/var/lib/libvirt/images\" ]")
        }
        guard elements.count <= mostProbeDirectories else {
            throw input.error("There are \(elements.count) folders", advice: "List at most \(mostProbeDirectories), one for each kind of storage")
        }
        configuration.probeDirectories = try elements.map { (element) throws(ConfigurationError) in
            let path = try input.string(element)
            guard path.hasPrefix("/") else { throw input.error("'\(path)' is not an absolute path", at: element.position, advice: "Begin it with '/'") }
            return path
        }
    }
}
