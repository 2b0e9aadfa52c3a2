{{- define "macvtap.labels" -}}
{{- include "macvtap.labelsAnd" (dict "root" . "key" "" "given" dict) }}
{{- end }}

{{- /* The labels of every object and these of one, which go before those of every object: a key is given once. */ -}}
{{- define "macvtap.labelsAnd" -}}
{{- include "macvtap.furtherLabels" (dict "key" "commonLabels" "given" .root.Values.commonLabels) }}
{{- include "macvtap.furtherLabels" (dict "key" .key "given" .given) }}
{{- include "macvtap.ownLabels" .root }}
{{- with merge (dict) (.given | default dict) (.root.Values.commonLabels | default dict) }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "macvtap.ownLabels" -}}
app.kubernetes.io/part-of: macvtap
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* Further labels. One that the chart sets itself is refused: its selectors need it, and a key is given once. */ -}}
{{- define "macvtap.furtherLabels" -}}
{{- range $label, $value := .given }}
{{- if or (eq $label "helm.sh/chart") (has $label (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/part-of" "app.kubernetes.io/version" "app.kubernetes.io/managed-by")) }}
{{- fail (printf "%s: the chart sets label %s itself; choose another label" $.key $label) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "macvtap.operator.selector" -}}
app.kubernetes.io/name: macvtap-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "macvtap.agent.selector" -}}
app.kubernetes.io/name: macvtap-node-agent
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "macvtap.webhook.selector" -}}
app.kubernetes.io/name: macvtap-webhook
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "macvtap.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Further arguments. One that the chart sets itself is refused: a program does not start with an argument given twice. */ -}}
{{- define "macvtap.extraArgs" -}}
{{- range .given }}
{{- $name := splitList "=" . | first }}
{{- if hasKey $.own $name }}
{{- fail (printf "%s: the chart sets %s itself; %s" $.key $name (get $.own $name)) }}
{{- end }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- /* An image: a digest decides; the tag stays in front of it for people. */ -}}
{{- define "macvtap.image" -}}
{{- $registry := .image.registry | default (.root.Values.global).imageRegistry }}
{{- $tag := .image.tag }}
{{- if not (or $tag .image.digest) }}
{{- $tag = .root.Chart.AppVersion }}
{{- end }}
{{- with $registry }}{{ . }}/{{ end }}{{ .image.repository }}{{ with $tag }}:{{ . }}{{ end }}{{ with .image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- /* The namespaces of operator and agents, as a JSON list without repetition. */ -}}
{{- define "macvtap.namespaces" -}}
{{ list .Release.Namespace (include "macvtap.agent.namespace" .) | uniq | toJson }}
{{- end }}

{{- define "macvtap.agent.namespace" -}}
{{ .Values.agent.namespace | default .Release.Namespace }}
{{- end }}
