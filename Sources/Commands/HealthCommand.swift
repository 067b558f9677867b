import ControlProtocol

struct HealthCommand: Command {
    let spec = CommandSpec(
        name: "health", summary: "show a host's hardware as its BMC sees it",
        options: [.init("host", value: "NAME", help: "Another host, which must be listed in the configuration; its service is asked. The default is this host."),
                  .init("events", help: "Show all of the last events, not only those of the last day.")] + CommandSpec.Option.client,
        description: [
            "Sensors and events of the BMC (iDRAC, iLO, IPMI) that bmc_address in the configuration names: temperatures, fans, voltages, power supplies, "
                + "memory errors, drives. The service reads them every bmc_interval; this shows the last reading, at once.",
            "STATE is FreeIPMI's judgement by the thresholds in the BMC; a value beyond a non-critical threshold is a warning. An event of a sensor that "
                + "cannot be read counts for a day.",
        ],
        examples: [
            .init("shadow-virt health", "Sensors and recent events"),
            .init("shadow-virt health --host node2", "Those of another host"),
            .init("shadow-virt health --format json", "For a program"),
            .init("shadow-virt health --quiet > /dev/null; test $? != 2 || alert", "For a monitor"),
        ],
        exitCodes: [(ExitCode.found, "something is critical")])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let response = try context.ask(ControlRequest(.health, to: arguments.value("host")), arguments, command: spec.name, notice: "")
        guard let report = response.health else { throw context.unexpected(spec.name) }
        try context.print(.health(report, allEvents: arguments.has("events")), arguments, command: spec.name)
        if report.bmc == nil { context.remark("No BMC is configured on \(report.host.printable): set bmc_address and restart the service", arguments) }
        if report.state == .critical { return ExitCode.found }
        if let problem = report.bmc?.problem { throw problem }
        return ExitCode.ok
    }
}
