import ControlProtocol
import Foundation

struct KPICommand: Command {
    let spec = CommandSpec(
        name: "kpi", summary: "show what was measured of a domain or host",
        operands: [.init(name: "DOMAIN", isRequired: false)],
        options: [
            .init("since", value: "TIME", help: "How far back: 90s, 10m, 1h, 1d; 5m is the default."),
            .init("host", help: "This host's own KPIs, which is also what is shown without DOMAIN."),
            .init("inside", help: "What the guest's agent tells, now: processes, libraries, file systems, users, errors of the journal."),
            .config, .socket,
            .init("format", value: "table|csv|json", help: "How to print the answer; table is the default."),
            .quiet, .help,
        ],
        description: [
            "With DOMAIN (name, id or UUID): the domain and its host on the primary's side, and the host of its shadow. Units stand in the names; a KPI "
                + "that could not be measured is absent (`-`, an empty cell, no key), which is not 0.",
            "The table shows the last value, the mean and the largest; csv and json show every sample. In csv `p_` is the primary's side, `s_` the shadow's.",
            "A day of samples is kept at the default interval of 5 s (telemetry_interval).",
        ],
        examples: [
            .init("shadow-virt kpi web1", "The last five minutes of a domain"),
            .init("shadow-virt kpi web1 --since 1d --format csv > web1.csv", "All there is, for a spreadsheet or for `analyze`"),
            .init("shadow-virt kpi --host --since 1h", "This host"),
            .init("shadow-virt kpi web1 --inside", "Processes, libraries and errors inside, as far as the guest's agent tells"),
        ])

    private static let most = 31 * 86_400_000.0

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let domain = arguments.operands.first
        if domain != nil, arguments.has("host") { throw misuse("Option '--host' and a DOMAIN exclude each other") }
        if arguments.has("inside") { return try inside(domain, arguments, context) }
        let format = arguments.value("format") ?? "table"
        // The shared options know two formats; csv is this command's own.
        var shared = arguments
        if format == "csv" {
            shared.values["format"] = "table"
        } else if OutputFormat(rawValue: format) == nil {
            throw misuse("Unknown format '\(format)': use table, csv or json")
        }
        let now = UInt64(max(0, Date().timeIntervalSince1970 * 1000))
        let report = try fetch(domain, since: now - min(now, UInt64(try period(arguments))), shared, context)
        if format == "csv" {
            context.output.data(KPIText.csv(report))
        } else {
            try context.print(.kpi(report), shared, command: spec.name)
        }
        remark(report, arguments, context)
        return ExitCode.ok
    }

    private func inside(_ domain: String?, _ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        guard let domain else { throw UsageError(message: "Option '--inside' needs a DOMAIN", command: spec.name) }
        if arguments.value("since") != nil { throw UsageError(message: "Options '--inside' and '--since' exclude each other: it is asked now", command: spec.name) }
        var request = ControlRequest(.kpi, domain: domain)
        request.inside = true
        guard let inside = try context.ask(request, arguments, command: spec.name, notice: "").inside else { throw context.unexpected(spec.name) }
        try context.print(.inside(inside), arguments, command: spec.name)
        return ExitCode.ok
    }

    private func period(_ arguments: ParsedArguments) throws -> Double {
        guard let text = arguments.value("since") else { return 300_000 }
        let days = text.hasSuffix("d") ? SwapCommand.milliseconds(String(text.dropLast()) + "h", plain: 0).map { $0 * 24 } : nil
        guard let milliseconds = days ?? SwapCommand.milliseconds(text, plain: 1000), milliseconds > 0, milliseconds <= Self.most else {
            throw misuse("Option '--since': '\(text)' is no time from 1s to 31d")
        }
        return milliseconds
    }

    /// All pages: a day does not fit on one line.
    private func fetch(_ domain: String?, since: UInt64, _ arguments: ParsedArguments, _ context: CommandContext) throws -> KPIReport {
        var since = since
        var report: KPIReport?
        while true {
            var request = ControlRequest(.kpi, domain: domain)
            request.sinceMs = since
            guard let page = try context.ask(request, arguments, command: spec.name, notice: "").kpi else { throw context.unexpected(spec.name) }
            var whole = report ?? KPIReport(page)
            whole.add(page)
            // A page without a row has nothing after it either, whatever it says.
            guard page.hasMore, let last = page.times.last else { return whole }
            report = whole
            since = max(since, last) + 1
        }
    }

    private func remark(_ report: KPIReport, _ arguments: ParsedArguments, _ context: CommandContext) {
        if report.intervalSeconds == 0 { context.remark("Nothing is measured on \(report.host.printable) at the moment: telemetry_interval is 0", arguments) }
        guard let last = report.samples.last else { return context.remark("No sample in that time", arguments) }
        let without = report.uuid == nil ? 0 : report.samples.filter { $0.sides["shadow"] == nil }.count
        context.remark("\(Quantity.count(report.samples.count, "sample")), the last of \(KPIReport.text(last.time))"
            + (without > 0 ? "; \(without) without the shadow's side" : ""), arguments)
    }
}
