import ControlProtocol
import Drift
import Foundation

/// Scores recorded samples with the analyzers that the service uses; needs neither service nor root.
struct AnalyzeCommand: Command {
    var spec: CommandSpec {
        CommandSpec(
            name: "analyze", summary: "score recorded KPIs for drift, without the service",
            operands: [.init(name: "pairs|series"), .init(name: "DIR")],
            options: [
                .init("step", value: "SECONDS", help: "Time between the rows of a pair; needed for pairs."),
                .init("out", value: "FILE", isRequired: true, help: "Write the scores to FILE ('-': stdout)."),
                .quiet, .help,
            ],
            description: [
                "Runs the drift analyzer of the service, with the settings it ships with, over every .csv file in DIR. A row's score uses the rows up to it only.",
                "pairs: files hold 'timestamp', and 'p_NAME' and 's_NAME' for the primary's and the shadow's KPI NAME; an empty field is a lost sample. "
                    + "Writes 'scenario,timestamp,score', where the scenario is the file's name without .csv; 1 and above is an alarm.",
                "series: files hold 'timestamp,value'. Writes 'series,timestamp,score' with scores from 0 to 1; 0.5 and above is an alarm.",
            ],
            examples: [
                .init("shadow-virt analyze pairs /var/tmp/kpis --step 60 --out scores.csv", "Would these pairs have raised an alarm?"),
                .init("shadow-virt analyze series /var/tmp/load --out -", "The same for single series."),
            ])
    }

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let kind = arguments.operands[0], folder = arguments.operands[1]
        guard let out = arguments.value("out") else { throw misuse("Missing --out FILE") }
        let score: (String) throws -> [FileScores.Row]
        switch kind {
        case "pairs":
            guard let text = arguments.value("step"), let step = Double(text), step.isFinite, step > 0 else {
                throw misuse("Pairs need --step SECONDS, a number above 0")
            }
            score = { try FileScores.pairs(path: $0, step: step) }
        case "series":
            guard arguments.value("step") == nil else { throw misuse("Option '--step' goes with pairs only") }
            score = { try FileScores.series(path: $0) }
        default:
            throw misuse("Unknown kind '\(kind)': use pairs or series")
        }
        let names = try files(in: folder)
        var text = (kind == "pairs" ? "scenario" : "series") + ",timestamp,score\n", count = 0
        for name in names {
            let rows = try score(folder + "/" + name)
            let label = name.dropLast(4)
            for row in rows { text += "\(label),\(row.timestamp),\(Self.number(row.score))\n" }
            count += rows.count
        }
        try write(text, to: out, context)
        context.remark("\(Quantity.count(count, "row")) of \(Quantity.count(names.count, "file")) scored", arguments)
        return ExitCode.ok
    }

    /// Six digits, rounded down: what prints as an alarm is one.
    private static func number(_ score: Double) -> String { "\((score * 1e6).rounded(.down) / 1e6)" }

    private func files(in folder: String) throws -> [String] {
        let names: [String]
        do {
            names = try FileManager.default.contentsOfDirectory(atPath: folder)
        } catch {
            throw AnalyzeError(description: "Cannot read folder '\(folder)': is it there, and is it a folder with .csv files?")
        }
        let files = names.filter { $0.hasSuffix(".csv") && $0.count > 4 }.sorted()
        guard !files.isEmpty else { throw AnalyzeError(description: "No .csv file in '\(folder)'") }
        if let odd = files.first(where: { $0.contains(",") || $0.contains("\n") }) {
            throw AnalyzeError(description: "File name '\(odd)' would break the scores' own CSV: rename it")
        }
        return files
    }

    private func write(_ text: String, to path: String, _ context: CommandContext) throws {
        if path == "-" {
            context.output.data(text)
            return
        }
        do {
            try text.write(toFile: path, atomically: true, encoding: .utf8)
        } catch {
            throw AnalyzeError(description: "Cannot write '\(path)': \(error.localizedDescription)")
        }
    }
}

private struct AnalyzeError: Error, CustomStringConvertible {
    var description: String
}
