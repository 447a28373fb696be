"""Deploys a CloudFormation template without the resources that the server does not know, and says what came of it."""

import json
import sys

import boto3
import yaml

endpoint, template, left_out, principal, more = sys.argv[1:6]
client = lambda service: boto3.client(
    service, endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
)


class Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short forms."""


def short_form(loader, name, node):
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if name == "GetAtt":
        value = value.split(".", 1)
    return {name if name in ("Ref", "Condition") else f"Fn::{name}": value}


Loader.add_multi_constructor("!", short_form)
with open(template) as file:
    stack = yaml.load(file, Loader)
for name in left_out.split(","):
    del stack["Resources"][name]

formation = client("cloudformation")
parameters = {"Name": "hybrid", "KitchenPrincipal": principal, "CollectorPrincipal": principal, **json.loads(more)}
formation.create_stack(
    StackName="hybrid",
    TemplateBody=json.dumps(stack),
    Capabilities=["CAPABILITY_NAMED_IAM"],
    Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
)
formation.get_waiter("stack_create_complete").wait(StackName="hybrid", WaiterConfig={"Delay": 1, "MaxAttempts": 60})
made = formation.describe_stacks(StackName="hybrid")["Stacks"][0]
outputs = {output["OutputKey"]: output["OutputValue"] for output in made["Outputs"]}

s3, sqs, iam = client("s3"), client("sqs"), client("iam")
bucket = outputs["Artifacts"].removeprefix("s3://")
attributes = lambda url: sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]


def policy(role):
    names = iam.list_role_policies(RoleName=role)["PolicyNames"]
    assert "part" in names, names
    documents = [iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"] for name in names]
    return {"Statement": [statement for document in documents for statement in document["Statement"]]}


encryption = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"][0]
alarms = client("cloudwatch").describe_alarms()["MetricAlarms"]
sts = client("sts")
assume = lambda role: sts.assume_role(RoleArn=outputs[f"{role.capitalize()}RoleArn"], RoleSessionName="test")["Credentials"]
roles = {role: outputs[f"{role.capitalize()}RoleArn"].rsplit("/", 1)[1] for role in ("storefront", "kitchen", "collector", "bedrock") if f"{role.capitalize()}RoleArn" in outputs}
print(
    json.dumps(
        {
            "status": made["StackStatus"],
            "outputs": outputs,
            "bucket": bucket,
            "versioning": s3.get_bucket_versioning(Bucket=bucket).get("Status"),
            "encryption": encryption["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"],
            "public_access": s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"],
            "ownership": s3.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"]["Rules"],
            "bucket_policy": json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"]),
            "queue": attributes(outputs["QueueUrl"]),
            "dead_letters": attributes(outputs["DeadLetterQueueUrl"]),
            "alarms": sorted(alarm["MetricName"] for alarm in alarms),
            "roles": {role: policy(name) for role, name in roles.items()},
            "credentials": {role: [str(assume(role)[key]) for key in ("AccessKeyId", "SecretAccessKey", "SessionToken")] for role in roles},
            "trust": {role: iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"] for role, name in roles.items()},
        }
    )
)
